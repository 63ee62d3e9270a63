// The form, the way from it to the results, and what the page remembers.

const EXAMPLES = [
  {
    prompt: "A farmer has 17 sheep and buys 26 more. How many sheep does she have now?",
    answers: [
      "She starts with 17 sheep and buys 26 more, so she has 17 + 26 = 43 sheep. The answer is 43.",
      "17 + 26 = 33, so the farmer has 33 sheep now. The answer is 33.",
      "Sheep are lovely animals, and farmers work very hard to look after them.",
    ],
  },
  {
    prompt: "Why is the sky blue?",
    answers: [
      "Air scatters short wavelengths of sunlight more than long ones, so blue light reaches us from all " +
        "directions.",
      "The sky is blue because it reflects the colour of the oceans below it.",
    ],
  },
  {
    prompt: "Write one sentence that thanks a colleague for their help.",
    answers: [
      "Thank you for staying late yesterday to find that bug with me; I learned a lot from you.",
      "thx",
      "Thank you thank you thank you thank you thank you thank you.",
    ],
  },
];

const page = { models: [], columns: [], asked: null, run: 0, example: 0, pair: null };

// ---- the form

function addAnswer(text = "") {
  const area = make("textarea", { rows: 2 });
  area.value = text;
  const remove = make("button", { type: "button" }, "remove");
  const row = make("li", {}, make("label", {}), remove, area);
  remove.addEventListener("click", () => {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    renumber();
    markOld();
    (next?.querySelector("textarea") ?? $("add")).focus();
  });
  $("answers").append(row);
  renumber();
  return area;
}

function renumber() {
  [...$("answers").children].forEach((row, i) => {
    const area = row.querySelector("textarea");
    area.id = `answer-${i + 1}`;
    const label = row.querySelector("label");
    label.htmlFor = area.id;
    label.textContent = `Answer ${i + 1}`;
    row.querySelector("button").setAttribute("aria-label", `Remove answer ${i + 1}`);
  });
}

const answerTexts = () => [...$("answers").querySelectorAll("textarea")].map((area) => area.value);

function fill({ prompt, answers }) {
  $("prompt").value = prompt;
  $("answers").replaceChildren();
  for (const text of answers) addAnswer(text);
  if (!answers.length) addAnswer();
}

const view = () => document.querySelector("input[name=view]:checked").value;

function choose(select, value) {
  if ([...select.options].some((option) => option.value === value)) select.value = value;
}

function currentState() {
  return {
    prompt: $("prompt").value, answers: answerTexts(),
    models: [$("model-1").value, $("model-2").value].filter(Boolean),
    view: view(), layers: $("layers").checked, policy: $("policy").value,
    ...(page.pair ? { pair: page.pair } : {}),
  };
}

function restore(state) {
  fill(state);
  const [one, two] = Array.isArray(state.models) ? state.models : [];
  choose($("model-1"), String(one ?? $("model-1").value));
  choose($("model-2"), String(two ?? ""));
  choose($("policy"), String(state.policy ?? "error"));
  const wanted = document.querySelector(`input[name=view][value="${CSS.escape(String(state.view))}"]`);
  (wanted ?? document.querySelector("input[name=view]")).checked = true;
  $("layers").checked = state.layers === true;
  page.pair = Array.isArray(state.pair) && state.pair.length === 2 ? state.pair : null;
  const missing = [one, two].filter((name) => name && !page.models.some((m) => m.id === name));
  return missing.length ? `This server has no model ${listed(missing.map(String))}. ` : "";
}

// ---- asking

async function loadModels() {
  const found = await ask("/v1/models");
  page.models = found.data;
  const options = () => page.models.map((m) => make("option", { value: m.id }, m.id));
  const [one, two] = [$("model-1").value, $("model-2").value];
  $("model-1").replaceChildren(...options());
  $("model-2").replaceChildren(make("option", { value: "" }, "no second one"), ...options());
  choose($("model-1"), one);
  choose($("model-2"), two);
}

function chosenModels() {
  const names = [...new Set([$("model-1").value, $("model-2").value].filter(Boolean))];
  return names.map((name) => page.models.find((m) => m.id === name));
}

async function judge(model, prompt, candidates, signal) {
  const body = { model: model.id, prompt, candidates, length_policy: $("policy").value,
    per_token: model.can_show_tokens !== false };
  if ($("layers").checked && model.can_show_layers) body.per_layer = true;
  if (model.objectives?.length) body.per_objective = true;
  try {
    return await ask("/v1/reward", { body, signal });
  } catch (error) {
    if (error instanceof Trouble && $("model-2").value) error.message = `${model.id}: ${error.message}`;
    throw error;
  }
}

async function score(note = "") {
  const prompt = $("prompt").value, texts = answerTexts();
  // Empty boxes are places for answers, not answers; the others keep their numbers.
  const kept = texts.map((text, i) => ({ text, i })).filter(({ text }) => text.trim() !== "");
  if (!prompt.trim() || !kept.length) {
    say("Write a question and at least one answer, or try an example.");
    (prompt.trim() ? $("answer-1") ?? $("add") : $("prompt")).focus();
    return;
  }
  const run = (page.run += 1);
  page.asked?.abort();
  page.asked = new AbortController();
  busy(true, "Scoring…");
  try {
    if (!page.models.length) await loadModels();
    const models = chosenModels();
    const { signal } = page.asked;
    const candidates = kept.map(({ text }) => text);
    const replies = await Promise.all(models.map((m) => judge(m, prompt, candidates, signal)));
    if (run !== page.run) return;
    for (const reply of replies) {
      for (const result of reply.results) result.index = kept[result.index].i;
    }
    show(models, replies, texts);
    const left = texts.length - kept.length;
    say(note + told(models, left));
  } catch (error) {
    if (run === page.run && error.name !== "AbortError") trouble(error, () => score(note));
  } finally {
    if (run === page.run) busy(false);
  }
}

function told(models, nLeft) {
  const first = page.columns[0].ranked[0];
  const left = nLeft ? ` Empty boxes left out: ${nLeft}.` : "";
  if (first.score === null) return `No answer has a score.${left}`;
  const best = models.length > 1 ? "" : `; Answer ${first.index + 1} is first with ${figure(first.score)}`;
  const n = counted(page.columns[0].results.length, "answer");
  return `${n} scored by ${listed(models.map((m) => m.id))}${best}.${left}`;
}

function show(models, replies, texts) {
  page.columns = models.map((model, i) => new Column(model, replies[i], texts, follow, compare));
  if (page.pair) for (const column of page.columns) column.beside?.choose(page.pair);
  $("main").classList.toggle("two", page.columns.length > 1);
  $("columns").replaceChildren(...page.columns.map((column) => column.node));
  $("agreement").textContent = page.columns.length > 1 ? agreement(...page.columns) : "";
  $("layers-label").hidden = !models.some((m) => m.can_show_layers);
  $("results").hidden = false;
  $("results").classList.remove("old");
  paint();
  remember();
}

/** The same token of the same answer, where the other model has it, too. */
function follow(card, i) {
  for (const column of page.columns) {
    const twin = column.cards.find((other) => other.result.index === card.result.index);
    const isSame = twin?.tokens?.length === card.tokens.length && twin.tokens[i].text === card.tokens[i].text;
    if (twin !== card && isSame) twin.mark(i);
  }
}

/** The same two answers for both models, and in the link. */
function compare(pair) {
  page.pair = pair;
  for (const column of page.columns) column.beside?.choose(pair);
  remember();
}

function paint() {
  for (const column of page.columns) column.paint(view());
}

async function drawAnswers() {
  const prompt = $("prompt").value;
  if (!prompt.trim()) {
    say("Write a question first.");
    $("prompt").focus();
    return;
  }
  busy(true, "The model is writing…");
  try {
    if (!page.models.length) await loadModels();
    const reply = await ask("/v1/sample", { body: {
      model: $("model-1").value, prompt, n: Number($("n").value),
      temperature: Number($("temperature").value), max_new_tokens: Number($("length").value),
      seed: Number($("seed").value) } });
    const own = answerTexts().filter((text) => text.trim() !== "");
    fill({ prompt, answers: [...own, ...reply.answers.map((a) => a.text)] });
    busy(false);
    await score();
  } catch (error) {
    trouble(error, drawAnswers);
  } finally {
    busy(false);
  }
}

// ---- what the page says

const say = (words) => { $("status").textContent = words; };

function busy(isBusy, words) {
  for (const id of ["score", "sample", "example"]) $(id).disabled = isBusy;
  $("results").setAttribute("aria-busy", String(isBusy));
  if (isBusy) {
    say(words);
    $("trouble").replaceChildren();
  }
}

function trouble(error, again) {
  say("");
  const box = make("div", { class: "verdict bad" }, make("p", { class: "answer" }, error.message));
  if (error.advice) box.append(make("p", {}, error.advice));
  if (error.mayRetry) {
    const button = make("button", { type: "button" }, "Try again");
    button.addEventListener("click", again);
    box.append(make("p", {}, button));
  }
  $("trouble").replaceChildren(box);
  if (error.needsToken) {
    $("options").open = true;
    $("token").focus();
  }
}

/** Results on the page belong to other texts than the form now holds. */
function markOld() {
  if ($("results").hidden || $("results").classList.contains("old")) return;
  $("results").classList.add("old");
  say("Something has changed since these scores; score again.");
}

function remember() {
  history.replaceState(null, "", linkOf(currentState()));
}

async function copyLink() {
  remember();
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied. It holds the texts themselves; opening it sends them to this server only.");
  } catch {
    // Browsers lend the clipboard to secure pages only.
    $("link").hidden = false;
    $("link").value = location.href;
    $("link").select();
    say("Copy the marked link.");
  }
}

// ---- light and dark

const isDark = () => (document.documentElement.dataset.theme ??
  (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

function showTheme() {
  $("theme").textContent = isDark() ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  for (const column of page.columns) for (const card of column.cards) card.layers?.paint();
}

function switchTheme() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("retrm-theme", document.documentElement.dataset.theme); } catch { /* not kept */ }
  showTheme();
}

// ---- beginning

async function openLink() {
  let state = null;
  try {
    state = stateOf(location.hash);
  } catch {
    say("The link cannot be read; it may have been cut.");
  }
  if (!state) return;
  const note = restore(state);
  await score(note);
}

async function begin() {
  try {
    const kept = localStorage.getItem("retrm-theme");
    if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  } catch { /* the system decides */ }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
  showTheme();
  $("token").value = keptToken();
  $("sampling").hidden = !FACTS.hasSampling;
  $("n").max = FACTS.mostAnswers;
  $("length").max = FACTS.mostNewTokens;
  document.querySelector("input[name=view]").checked = true;
  addAnswer();
  addAnswer();
  listen();
  try {
    await loadModels();
  } catch (error) {
    trouble(error, () => location.reload());
    return;
  }
  await openLink();
}

function listen() {
  $("form").addEventListener("submit", (event) => { event.preventDefault(); score(); });
  $("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); score(); }
  });
  $("form").addEventListener("input", (event) => {
    if (event.target.id !== "token" && !event.target.closest("#sampling")) markOld();
  });
  $("add").addEventListener("click", () => addAnswer().focus());
  $("example").addEventListener("click", () => {
    page.pair = null;
    fill(EXAMPLES[page.example++ % EXAMPLES.length]);
    score();
  });
  $("sample").addEventListener("click", drawAnswers);
  $("token").addEventListener("change", async () => {
    keepToken($("token").value.trim());
    try { await loadModels(); say("The server takes this key."); $("trouble").replaceChildren(); }
    catch (error) { trouble(error, loadModels); }
  });
  for (const radio of document.querySelectorAll("input[name=view]")) {
    radio.addEventListener("change", () => { paint(); remember(); });
  }
  $("layers").addEventListener("change", () => score());
  $("copy").addEventListener("click", copyLink);
  $("theme").addEventListener("click", switchTheme);
  window.addEventListener("hashchange", openLink);
}

begin();
