// What scrolls sideways can be scrolled with the keyboard, too.
for (const box of document.querySelectorAll(".table-wrapper, .cell_output .output, .highlight pre"))
  box.tabIndex = 0;

// What the theme leaves unsaid to screen readers.
for (const caption of document.querySelectorAll(".caption[role=heading]"))
  caption.ariaLevel = "2";
document.querySelector("aside.sidebar-drawer").ariaLabel = "Contents";
