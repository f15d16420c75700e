// Brings the page to life: images that stand twice, images that open, the parts that need a script.

document.documentElement.classList.add("alive");

for (const again of document.querySelectorAll("[data-again]")) {
  const image = Number(again.dataset.again);
  const source = sourceOf(image);
  if (source !== null) {
    const shown = el("img", { src: source, alt: again.dataset.alt, "data-image": image });
    shown.classList.toggle("crisp", isCrisp(image));
    again.replaceWith(shown);
  }
}

// Images of rows of pairs: a button around each, the arrow keys walk along arms and rows.
const pairRows = [...document.querySelectorAll(".pair")].map((row) => [...row.querySelectorAll("img[data-image]")]);
pairRows.forEach((row, r) =>
  row.forEach((shown, c) => {
    const button = el("button", { type: "button", class: "shot-button", click: () =>
      lightbox.open(pairRows.map((line) => line.map((one) => Number(one.dataset.image))), r, c) });
    shown.replaceWith(button);
    button.append(shown);
  })
);

// A point of the strip plot opens its pairs.
for (const point of document.querySelectorAll("[data-pairs]")) {
  const images = point.dataset.pairs.split(";").map((pair) => pair.split(",").map(Number));
  const open = () => lightbox.open(images, 0, images[0].length - 1);
  point.setAttribute("tabindex", "0");
  point.setAttribute("role", "button");
  point.addEventListener("click", open);
  point.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open();
    }
  });
}

trials.init();
grid.init();
votes.init();

// Printing opens what is folded, and folds it again.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});

if (state.read().image) lightbox.restore(state.read());
addEventListener("hashchange", () => {
  const given = state.read();
  if (Object.keys(given).length) grid.restart();
  if (given.image) lightbox.restore(given);
});
