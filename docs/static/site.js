// What scrolls sideways can be scrolled with the keyboard, too.
for (const box of document.querySelectorAll(".table-wrapper, .cell_output .output, .highlight pre"))
  box.tabIndex = 0;
