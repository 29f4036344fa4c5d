// The study's page: jsPsych shows it, this file says what to show, keeps the answers and sends them. SETTINGS comes from settings.js, PLAN from a file of plans/ that only the code names and unseals.
"use strict";

const $ = (selector) => document.querySelector(selector);
const status = (text) => { if ($("#status").textContent !== text) $("#status").textContent = text; };
const escaped = (text) => text.replace(/[&<>"]/g, (c) => ({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}[c]));
const template = (id) => $("#" + id).innerHTML;
// A page opened as a file has no server of its own behind it; the address may still be a complete one.
const POST = SETTINGS.post && (location.protocol !== "file:" || /^https?:/.test(SETTINGS.post)) ? SETTINGS.post : null;
let jsPsych, PLAN;

// ---- What the code does: it names the file of the plan, unseals it and signs the answers; as in prle.study.page ----

const keyed = (secret, ...words) => sha256.hmac(secret, words.join("\n")); // null counts as ""
const planName = (code) => keyed(code, "file", SETTINGS.study).slice(0, 32);

function unsealed(code, hex) { // the plan; an error if it was not sealed with this code
  let stream = "", text = "";
  for (let k = 0; stream.length < hex.length; k++) stream += keyed(code, "plan", SETTINGS.study, k);
  const byte = (digits, i) => parseInt(digits.slice(i, i + 2), 16);
  for (let i = 0; i < hex.length; i += 2) text += String.fromCharCode(byte(hex, i) ^ byte(stream, i));
  return JSON.parse(text);
}

function signed(a) { // an answer as it is sent and saved
  const seal = keyed(PLAN.code, "answer", SETTINGS.study, a.index, a.item, a.answer, a.rt, a.source, a.confidence).slice(0, 32);
  return {study: SETTINGS.study, code: PLAN.code, ...a, seal};
}

// ---- What survives a reload: in the browser's own storage, without the code, which the next person at this machine shall not find ----

const memory = {
  state: null,
  load(code) {
    this.name = `prle-study ${SETTINGS.study} ${planName(code)}`;
    try { this.state = JSON.parse(localStorage.getItem(this.name)); } catch { this.state = null; }
    this.state = this.state || {consented: false, practised: false, answers: [], sent: 0};
  },
  // What the server has decides: with nothing there all was removed on purpose and the session starts anew; what was answered on another machine is null here.
  async match() {
    const stored = await post.stored(), s = this.state;
    if (stored === null) return;
    if (!stored && s.sent) { this.state = {consented: false, practised: false, answers: [], sent: 0}; return this.save(); }
    if (stored > s.answers.length) Object.assign(s, {consented: true, practised: true, answers: Array.from({length: stored}, (_, k) => s.answers[k] || null)});
    s.sent = stored;
    this.save();
  },
  save() {
    try { localStorage.setItem(this.name, JSON.stringify(this.state)); }
    catch { status("This browser stores nothing, so please do not reload the page before the end."); }
  },
};

// ---- Sending: one answer after the other, each until the server has it ----

const post = {
  busy: false, refused: null,
  async flush() {
    if (!POST || this.busy || this.refused) return;
    this.busy = true;
    for (let wait = 500; memory.state.sent < memory.state.answers.length && !this.refused;) {
      const reply = await this.send(signed(memory.state.answers[memory.state.sent]));
      if (reply === "stored") { memory.state.sent++; memory.save(); status(""); wait = 500; }
      else if (reply === "later") {
        status("Not saved yet: no connection. Please go on, the page keeps trying.");
        await new Promise((done) => setTimeout(done, wait));
        wait = Math.min(2 * wait, 8000);
      } else { this.refused = reply; }
    }
    this.busy = false;
    if (this.refused) status(`Answers cannot be saved: ${this.refused} Please tell the researcher.`);
    finished();
  },
  async send(answer) { // "stored", "later", or why it was refused
    try {
      const reply = await fetch(POST, {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(answer), credentials: "omit", referrerPolicy: "no-referrer"});
      if (reply.ok) return "stored";
      if (reply.status >= 500 || [408, 429].includes(reply.status)) return "later";
      const why = await reply.json().catch(() => ({}));
      return why.same ? "stored" : why.error || `the server answered ${reply.status}.`;
    } catch { return "later"; }
  },
  async stored() { // how many of the session's answers the server has; null where it does not say
    if (!POST) return null;
    try {
      const address = new URL(POST, location);
      for (const [name, value] of [["study", SETTINGS.study], ["code", PLAN.code]]) address.searchParams.set(name, value);
      const reply = await fetch(address, {credentials: "omit", referrerPolicy: "no-referrer", signal: AbortSignal.timeout(5000)});
      const n = (await reply.json()).stored;
      return reply.ok && Number.isInteger(n) && 0 <= n && n <= PLAN.items.length ? n : null;
    } catch { return null; }
  },
};

function results() {
  const answers = memory.state.answers.filter(Boolean);
  return {study: SETTINGS.study, code: PLAN.code, complete: answers.length === PLAN.items.length, answers: answers.map(signed)};
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(results(), null, 1)], {type: "application/json"}));
  link.download = `${PLAN.code}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000); // some browsers read it a while after the click
}

function finished() { // the last line of the last page
  if (!$("#saved")) return;
  const left = memory.state.answers.length - memory.state.sent;
  $("#saved").textContent = POST && !left ? "All your answers are saved. You may close this page now."
    : POST && !post.refused ? `Answers not saved yet: ${left}. Please leave this page open. If this stays so, save your answers with the button and hand the file in.`
    : "Please save your answers with the button and hand the file in. Then you may close this page.";
}

// ---- Screens ----

const focus = () => { window.scrollTo(0, 0); const h = $("#study h1"); if (h) { h.tabIndex = -1; h.focus(); } };
const button = (label, key) => `<button type="button" class="jspsych-btn">${label}${key ? ` <span aria-hidden="true">(${key})</span>` : ""}</button>`;
const screen = (stimulus, buttons, keys, more) => ({
  type: jsPsychHtmlMultiResponse, stimulus, button_choices: buttons.map((b) => b[0]), keyboard_choices: keys,
  button_html: (label, i) => button(label, buttons[i][1]), on_load: focus, ...more,
});
const chosen = (data, keys) => data.response_source === "keyboard" ? keys.indexOf(data.keyboard_response.toLowerCase()) : data.button_response;
const LONGEST = 86400000; // ms; prle.study.server takes no longer time
const JUDGE = [["Real", "R"], ["Fake", "F"]], JUDGE_KEYS = ["r", "f"], WORDS = ["real", "fake"];

function judging(item, line, value, max, onAnswer) {
  const middle = item.check
    ? `<p class="check">This is a check. Please answer &ldquo;${item.check}&rdquo; here.</p>`
    : `<img class="picture" src="images/${item.picture}" alt="A face, parts of which may be covered in black." draggable="false">`;
  return screen(
    `<div class="trial"><div class="progress"><label for="bar" style="margin:0;font-weight:400">${line}</label><progress id="bar" value="${value}" max="${max}"></progress></div>
     <h1>Is this face real or fake?</h1>${middle}</div>`,
    JUDGE, JUDGE_KEYS, {on_finish: (data) => onAnswer(WORDS[chosen(data, JUDGE_KEYS)], data)});
}

function consent() {
  return screen(template("consent"), [["I agree and take part"]], "NO_KEYS", {on_finish: () => { memory.state.consented = true; memory.save(); }});
}

function instructions() {
  const holder = document.createElement("div");
  holder.innerHTML = template("instructions");
  return {type: jsPsychInstructions, pages: [...holder.querySelectorAll("section")].map((s) => s.outerHTML), show_clickable_nav: true, show_page_number: true,
          button_label_previous: "Back", button_label_next: "Next", on_load: focus, on_page_change: focus};
}

function practice() {
  let given;
  const one = (item, i) => [
    judging(item, `Practice ${i + 1} of ${SETTINGS.practice.length}`, i, SETTINGS.practice.length, (answer) => { given = answer; }),
    {...screen("", [["Go on"]], ["enter"]), stimulus: () => `<div class="trial"><h1 class="verdict">${given === item.answer ? "Right" : "Not right"}: this one is ${item.answer}.</h1>
     <img class="picture" src="images/${item.picture}" alt="The face just judged." draggable="false"></div>`}];
  const ready = screen("<h1>Now it counts</h1><p>From here on you are not told whether an answer was right.</p>", [["Start"]], ["enter"],
                       {on_finish: () => { memory.state.practised = true; memory.save(); }});
  return [...SETTINGS.practice.flatMap(one), ready];
}

const SURE = [["Guessed", "1"], ["Rather sure", "2"], ["Sure", "3"], ["Skip", "0"]], SURE_KEYS = ["1", "2", "3", "0"];

function confidence(index, keep) {
  return screen(`<div class="trial"><h1>How sure are you?</h1><p>You may skip this.</p></div>`, SURE, SURE_KEYS, {
    on_finish: (data) => { const c = chosen(data, SURE_KEYS); keep(c < 3 ? c + 1 : null); }});
}

function session() {
  const n = PLAN.items.length;
  return PLAN.items.map((item, index) => ({item, index})).slice(memory.state.answers.length).flatMap(({item, index}) => {
    let record;
    const keep = (sure) => { memory.state.answers.push({...record, confidence: sure}); memory.save(); post.flush(); };
    const asks = SETTINGS.confidence && item.picture;
    const judge = judging(item, `${index + 1} of ${n}`, index, n, (answer, data) => {
      record = {index, item: item.picture || "check", answer, rt: Math.min(Math.round(data.rt), LONGEST), source: data.response_source};
      if (!asks) keep(null);
    });
    return asks ? [judge, confidence(index, keep)] : [judge];
  });
}

function thanks() {
  return screen(`${template("thanks")}<p id="saved" role="status"></p>`, [["Save my answers as a file"]], "NO_KEYS", {
    response_ends_trial: false,
    on_load: () => {
      const b = $("#jspsych-html-multi-response-button-0 button"); // the plugin disables it after the first click, a second copy shall be possible
      b.addEventListener("click", () => { download(); setTimeout(() => { b.disabled = false; }); });
      focus(); finished(); post.flush();
    }});
}

// ---- The participant's code, from the address or asked for; one that was typed stays out of the address, which browsers remember for the next person ----

function plan(code) {
  return new Promise((done) => {
    if (!/^[a-z0-9]{16}$/.test(code)) return done(false);
    const script = document.createElement("script");
    script.src = `plans/${planName(code)}.js`;
    script.onload = () => {
      try { PLAN = unsealed(code, window.SEALED); } catch { PLAN = null; }
      done(PLAN && PLAN.study === SETTINGS.study && PLAN.code === code);
    };
    script.onerror = () => done(false);
    document.head.append(script);
  });
}

async function code() {
  const plain = (text) => text.toLowerCase().replace(/[^a-z0-9]/g, ""); // typed in groups, with spaces or hyphens
  const given = plain(new URLSearchParams(location.search).get("code") || "");
  for (const known of [given, history.state?.code]) if (known && await plan(known)) return;
  let wrong = given;
  while (true) {
    const asked = {
      type: jsPsychSurveyHtmlForm, button_label: "Start", autofocus: "code",
      html: `<h1>Real or fake?</h1>${wrong ? `<p role="alert">There is no code &ldquo;${escaped(wrong)}&rdquo; in this study.</p>` : ""}
             <label for="code">Your code</label><p id="hint">Sixteen letters and digits that the researcher gave you.</p>
             <input type="text" id="code" name="code" required maxlength="40" autocapitalize="none" autocomplete="off" spellcheck="false" aria-describedby="hint">`};
    let entered;
    await jsPsych.run([{...asked, on_finish: (data) => { entered = plain(data.response.code); }}]);
    if (await plan(entered)) {
      try { history.replaceState({code: entered}, ""); } catch { } // so that a reload does not ask again; some browsers forbid it for files
      return;
    }
    wrong = entered;
  }
}

// ---- What is no answer, though jsPsych would take it for one ----

let changed = 0; // when the last screen ended, ms
const home = () => $("#study").focus({preventScroll: true});
// Ctrl+R reloads the page and does not say "real".
addEventListener("keydown", (event) => { if (event.ctrlKey || event.metaKey || event.altKey) event.stopImmediatePropagation(); }, true);
// The second click of a double click falls on the next screen's button. Keys click without a count (`detail`).
addEventListener("click", (event) => { if (event.detail && performance.now() - changed < 250) { event.stopImmediatePropagation(); event.preventDefault(); } }, true);
// A click beside the screen takes the focus away, and with it the keys.
addEventListener("click", () => { if (document.activeElement === document.body) home(); });

async function start() {
  jsPsych = initJsPsych({display_element: "study", on_trial_finish: () => { changed = performance.now(); home(); }}); // the focus stays inside, or jsPsych misses that a key is let go
  await code();
  memory.load(PLAN.code);
  await memory.match();
  const s = memory.state, resumed = s.consented && s.answers.length < PLAN.items.length && (s.practised || s.answers.length);
  const pictures = [...SETTINGS.practice.map((p) => p.picture), ...PLAN.items.filter((i) => i.picture).map((i) => i.picture)].map((p) => `images/${p}`);
  const preload = {type: jsPsychPreload, images: pictures, show_progress_bar: true, message: "<h1>Loading the pictures</h1>", continue_after_error: false,
                   error_message: "<h1>A picture could not be loaded</h1><p>Please reload the page.</p>"};
  const welcome = screen(`<h1>Welcome back</h1><p>You have answered ${s.answers.length} of ${PLAN.items.length}. ${s.answers.includes(null) ? "If that was not you, please tell the researcher." : "Your answers were kept."}</p>`, [["Go on"]], ["enter"]);
  await jsPsych.run([
    ...(s.consented ? [] : [consent()]), preload, ...(resumed ? [welcome] : []),
    ...(s.practised || s.answers.length ? [] : [instructions(), ...practice()]), ...session(), thanks()]);
}

start();
