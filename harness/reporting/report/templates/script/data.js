// What the page knows, with look-ups: trials, arms, images, scores, contrasts.

const data = JSON.parse(document.getElementById("data").textContent);

/** An element with attributes, listeners (functions) and children (elements or texts). */
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const byId = (id) => document.getElementById(id);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** 1.23 with a true minus sign; an em dash where there is no number. */
function plain(value, decimals) {
  if (value === null || value === undefined || Number.isNaN(value)) return "—";
  const text = value.toFixed(decimals);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}

/** +1.23, −1.23, 0.00 */
function signed(value, decimals) {
  const text = plain(value, decimals);
  return value > 0 && Number(value.toFixed(decimals)) > 0 ? `+${text}` : text;
}

/** "up" for better, "down" for worse, "" for zero as shown or a metric without a better direction. */
function tone(value, metric) {
  const { decimals, higher } = data.metrics[metric];
  if (value === null || higher === null || Number(value.toFixed(decimals)) === 0) return "";
  return value > 0 === higher ? "up" : "down";
}

const imageOfCell = new Map();
data.images.draw.forEach((draw, image) =>
  imageOfCell.set(`${draw} ${data.images.prompt[image]} ${data.images.seed[image]}`, image)
);

/** The image of a trial's arm for a prompt and a seed; -1 where there is none. */
function imageOf(trial, arm, prompt, seed) {
  return imageOfCell.get(`${data.trials[trial].draws[arm]} ${prompt} ${seed}`) ?? -1;
}

const ownersOfDraw = new Map();
data.trials.forEach((trial, place) =>
  trial.draws.forEach((draw, arm) => {
    if (!ownersOfDraw.has(draw)) ownersOfDraw.set(draw, []);
    ownersOfDraw.get(draw).push([place, arm]);
  })
);

/** The trial and the arm that an image belongs to; of a control that trials share, the selected trial's. */
function ownerOf(image) {
  const owners = ownersOfDraw.get(data.images.draw[image]) ?? [];
  return owners.find(([trial]) => trial === data.selected) ?? owners[0] ?? [-1, -1];
}

const score = (image, metric) => (image < 0 ? null : data.images.scores[metric][image]);

/** Score of an image minus that of its control on the same prompt and seed; null where either is missing. */
function difference(trial, arm, prompt, seed, control, metric) {
  if (arm === control) return null;
  const own = score(imageOf(trial, arm, prompt, seed), metric);
  const other = score(imageOf(trial, control, prompt, seed), metric);
  return own === null || other === null ? null : own - other;
}

const contrasts = new Map(
  data.contrasts.map(([trial, arm, control, metric, split, value, low, high, prompts]) => [
    [trial, arm, control, metric, split].join(" "),
    { value, low, high, prompts },
  ])
);

/** Mean difference over all prompts of a split with its interval, as the tables have it. */
const contrast = (trial, arm, control, metric, split) =>
  contrasts.get([trial, arm, control, metric, split === "test" ? 1 : 0].join(" "));

/** What is seen of an image: its thumbnail, else its file where the page can reach it, else nothing. */
function sourceOf(image) {
  const known = data.thumbnails[image];
  if (known === "") return document.querySelector(`img[data-image="${image}"]`)?.src ?? null;
  return known ?? originalOf(image);
}

/** Address of the image file; null where the page lies elsewhere than the images. */
const originalOf = (image) => (data.base === null ? null : encodeURI(data.base + data.images.path[image]));

const isCrisp = (image) => Math.max(...data.images.size[image]) <= 96;

/** "a fox, seed 0, wrong_lora, rank 8": what an image is. */
function nameOf(image) {
  const [trial, arm] = ownerOf(image);
  const name = arm < 0 ? "" : data.arms[arm].name;
  const own = arm >= 0 && !data.arms[arm].control;
  const prompt = data.prompts[data.images.prompt[image]].text;
  const seed = data.seeds[data.images.seed[image]];
  return `${name}: ${prompt}, seed ${seed}${own ? `, ${data.trials[trial].label}` : ""}`;
}

/** The `parameters` text of an image's file; empty where it has none. */
function parametersOf(image) {
  const template = data.images.templates[data.images.parameters[image]];
  if (template === undefined) return "";
  return template
    .replace("{prompt}", () => data.prompts[data.images.prompt[image]].text)
    .replace("{seed}", () => data.images.noise[image]);
}
