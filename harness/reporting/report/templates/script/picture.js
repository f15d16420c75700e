// "Save view as PNG": the grid as it stands, with labels, scores and what it shows.

function saveView(panels, view) {
  const TILE = view.size || 128;
  const LINE = 16;
  const GAP = 8;
  const { decimals, name } = data.metrics[view.metric];
  const css = getComputedStyle(document.documentElement);
  const colour = (key) => css.getPropertyValue(key).trim();
  const widest = Math.max(0, ...panels.flatMap((panel) => panel.rows.map((row) => row.label.length)));
  const LEFT = Math.min(260, 24 + widest * 7);
  const rowHeight = TILE + 3 * LINE + GAP;
  const columns = Math.max(...panels.map((panel) => panel.columns.length + (panel.pinned ? 1 : 0)));
  const height = panels.reduce((sum, panel) => sum + 3 * LINE + panel.rows.length * rowHeight, 5 * LINE);
  const canvas = el("canvas", { width: LEFT + columns * (TILE + GAP) + GAP, height });
  const pen = canvas.getContext("2d");
  pen.fillStyle = colour("--paper");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  const write = (text, x, y, { bold = false, key = "--ink", width = TILE } = {}) => {
    pen.font = `${bold ? "600 " : ""}12px system-ui, sans-serif`;
    pen.fillStyle = colour(key);
    let shown = text;
    while (shown && pen.measureText(shown).width > width) shown = `${shown.slice(0, -2)}…`;
    pen.fillText(shown, x, y);
  };
  const waiting = [];
  let top = LINE;
  write(`${data.sweep}: ${name}, difference from ${data.arms[view.control].name}`, GAP, top + 4, { bold: true, width: canvas.width - 2 * GAP });
  top += LINE;
  const fixed = Object.entries(view.at).filter(([key]) => ![view.x, view.y, view.z].includes(key)).map(([key, value]) => {
    if (key === "prompt") return value >= 0 ? `“${data.prompts[value].text}”` : `all ${value === -2 ? "test" : "dev"} prompts`;
    if (key === "seed") return value >= 0 ? `seed ${data.seeds[value]}` : "all seeds";
    if (key === "trial") return null;
    const axis = data.axes.find((one) => one.key === key);
    return axis ? `${axis.name} ${axis.values[value]}` : null;
  }).filter(Boolean);
  write(fixed.join(" · "), GAP, top + 4, { key: "--muted", width: canvas.width - 2 * GAP });
  top += LINE;
  for (const panel of panels) {
    top += 2 * LINE;
    write(panel.title, GAP, top - LINE, { bold: true, width: LEFT });
    const heads = [...(panel.pinned ? [data.arms[view.control].name] : []), ...panel.columns.map((column) => column.label)];
    heads.forEach((head, c) => write(head, LEFT + c * (TILE + GAP), top - 4, { bold: true }));
    panel.cells.forEach((row, r) => {
      write(panel.rows[r].label, GAP, top + TILE / 2, { bold: true, width: LEFT - 2 * GAP });
      const all = panel.pinned ? [panel.pinned[r] ?? { images: [] }, ...row] : row;
      all.forEach((cell, c) => {
        const [x, y] = [LEFT + c * (TILE + GAP), top];
        const source = cell.images.length ? sourceOf(cell.images[0]) : null;
        if (source === null) {
          pen.strokeStyle = colour("--rule");
          pen.strokeRect(x + 0.5, y + 0.5, TILE - 1, TILE - 1);
          write(cell.reason ?? "no image", x + 4, y + TILE / 2, { key: "--muted", width: TILE - 8 });
        } else {
          const image = new Image();
          image.src = source;
          waiting.push(image.decode().then(() => {
            const factor = Math.min(TILE / image.naturalWidth, TILE / image.naturalHeight);
            pen.imageSmoothingEnabled = !isCrisp(cell.images[0]);
            pen.drawImage(image, x, y, image.naturalWidth * factor, image.naturalHeight * factor);
          }, () => undefined));
        }
        const parts = [cell.value === null || cell.value === undefined ? "" : plain(cell.value, decimals)];
        if (cell.apart !== null && cell.apart !== undefined) parts.push(signed(cell.apart, decimals));
        write(parts.join("  "), x, y + TILE + LINE, {});
        if (cell.low !== null && cell.low !== undefined) {
          write(`[${signed(cell.low, decimals)}, ${signed(cell.high, decimals)}]`, x, y + TILE + 2 * LINE, { key: "--muted" });
        }
      });
      top += rowHeight;
    });
    top += LINE;
  }
  return Promise.all(waiting).then(() => new Promise((resolve) => {
    canvas.toBlob((blob) => {
      if (blob) download(`${data.sweep}-grid.png`, blob);
      resolve(blob !== null);
    });
  }));
}
