// Blind votes: pairs of the verdict's arm and a control, in an order and on sides that chance decides, without
// names or scores; now and then one image twice, to measure the rater's own noise.

const votes = (() => {
  const dialog = byId("vote");
  const IDENTICAL_EVERY = 8;
  const KEYS = { 1: "left", 2: "right", 0: "tie" };
  let ballot = null; // { rater, control, seed, choices }
  let pairs = [];

  /** Numbers between 0 and 1 that depend on the seed alone (mulberry32). */
  function chance(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  /** Pairs [left, right] of image rows, the same for the same seed. */
  function drawn(control, seed) {
    const random = chance(seed);
    const found = [];
    data.prompts.forEach((prompt, p) => {
      if (prompt.split !== data.split) return;
      data.seeds.forEach((_, s) => {
        const pair = [imageOf(data.selected, data.arm, p, s), imageOf(data.selected, control, p, s)];
        if (pair.every((image) => image >= 0)) found.push(pair);
      });
    });
    for (let i = found.length - 1; i > 0; i -= 1) {
      const j = Math.floor(random() * (i + 1));
      [found[i], found[j]] = [found[j], found[i]];
    }
    const placed = found.flatMap((pair, i) => {
      const sides = random() < 0.5 ? pair : [pair[1], pair[0]];
      if (i % IDENTICAL_EVERY !== IDENTICAL_EVERY - 1) return [sides];
      const twice = found[Math.floor(random() * found.length)][Math.floor(random() * 2)];
      return random() < 0.5 ? [sides, [twice, twice]] : [[twice, twice], sides];
    });
    return placed;
  }

  function start(event) {
    event.preventDefault();
    const rater = byId("vote-rater").value.trim();
    const control = Number(byId("vote-against").value);
    const key = `votes ${rater} ${control}`;
    const before = memory.get(key);
    ballot = before ?? { rater, control, seed: crypto.getRandomValues(new Uint32Array(1))[0], choices: [] };
    pairs = drawn(control, ballot.seed);
    show();
    dialog.showModal();
  }

  function show() {
    const place = ballot.choices.length;
    const done = place >= pairs.length;
    byId("vote-title").textContent = done ? "Done. Thank you!" : "Which image is better?";
    byId("vote-progress").textContent = `${place} of ${pairs.length}`;
    byId("vote-stage").replaceChildren(...(done ? [] : pairs[place].map((image, side) => {
      const shown = el("img", { alt: side ? "right image" : "left image" });
      const small = data.thumbnails[image] === null ? null : sourceOf(image);
      const original = originalOf(image);
      if (original && small) shown.addEventListener("error", () => { shown.src = small; }, { once: true });
      shown.src = original ?? small ?? "data:,";
      shown.classList.toggle("crisp", isCrisp(image));
      return el("button", { type: "button", class: "shot-button", click: () => choose(side ? "right" : "left") }, shown);
    })));
    byId("vote-prompt").textContent = done ? "Save the votes, then give them back: harness votes add FOLDER votes.json" : data.prompts[data.images.prompt[pairs[place][0]]].text;
    byId("vote-choices").hidden = done;
    byId("vote-back").disabled = place === 0;
    byId("vote-save").disabled = place === 0;
  }

  function choose(choice) {
    if (ballot.choices.length >= pairs.length) return;
    ballot.choices.push(choice);
    keep();
  }

  function back() {
    ballot.choices.pop();
    keep();
  }

  function keep() {
    memory.set(`votes ${ballot.rater} ${ballot.control}`, ballot);
    show();
  }

  /** What `harness votes add` reads. */
  function asFile() {
    return {
      harness_votes: 1, sweep: data.sweep, rater: ballot.rater, seed: ballot.seed,
      votes: ballot.choices.map((choice, i) => ({ left: data.images.id[pairs[i][0]], right: data.images.id[pairs[i][1]], choice })),
    };
  }

  function init() {
    const form = byId("vote-form");
    if (!form || data.selected < 0) return;
    byId("vote-against").replaceChildren(...data.arms.flatMap((arm, a) =>
      (arm.control ? [el("option", { value: a, selected: a === data.control }, arm.name)] : [])));
    form.addEventListener("submit", start);
    byId("vote-choices").addEventListener("click", (event) => { if (event.target.dataset.choice) choose(event.target.dataset.choice); });
    byId("vote-back").addEventListener("click", back);
    byId("vote-close").addEventListener("click", () => dialog.close());
    byId("vote-save").addEventListener("click", () =>
      download("votes.json", new Blob([JSON.stringify(asFile(), null, 1)], { type: "application/json" })));
    dialog.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (KEYS[event.key]) choose(KEYS[event.key]);
      else if (event.key === "Backspace" && ballot.choices.length) back();
      else return;
      event.preventDefault();
    });
  }

  return { init };
})();
