// Lanes: one for each layer, in it a row for each expert and a column for each token. A cell is lit
// where the token went to the expert, the more the higher its weight.

const COLUMN = 9;
const MOST = 2000; // columns; a canvas has an end, and eyes have one before it

export const hueOf = (expert, nExperts) => Math.round((expert * 360) / nExperts);

export class Lanes {
  constructor(canvas, nLayers, nExperts) {
    this.canvas = canvas;
    this.nExperts = nExperts;
    this.nLayers = nLayers;
    this.row = nLayers > 8 ? 2 : 4;
    this.lane = this.row * nExperts + 4;
    this.routes = []; // of each token: null, or by layer [expert, weight] pairs
    this.marked = -1;
  }

  // The numbers of the layers, beside the lanes.
  names() {
    const column = document.createElement("div");
    column.className = "names";
    for (let layer = 0; layer < this.nLayers; layer++) {
      const name = document.createElement("span");
      name.textContent = layer;
      name.style.height = `${this.lane}px`;
      column.append(name);
    }
    return column;
  }

  get first() {
    return Math.max(0, this.routes.length - MOST);
  }

  // Takes the newest token; who looks at the end goes on to look at it.
  add(routes) {
    const box = this.canvas.parentElement;
    this.follows ||= box.scrollLeft + box.clientWidth > box.scrollWidth - 4 * COLUMN;
    this.routes.push(routes);
    this.soon();
  }

  // Frames a token and brings it into view.
  mark(index) {
    const box = this.canvas.parentElement;
    const x = this.canvas.offsetLeft - box.offsetLeft + (index - this.first) * COLUMN;
    if (index >= 0 && (x < box.scrollLeft || x > box.scrollLeft + box.clientWidth - COLUMN)) {
      box.scrollLeft = x - box.clientWidth / 2;
    }
    this.marked = index;
    this.soon();
  }

  // The token at a place of the canvas.
  at(x) {
    const index = this.first + Math.floor(x / COLUMN);
    return index < this.routes.length ? index : -1;
  }

  // Draws before the next frame, however many tokens came meanwhile.
  soon() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
      if (this.follows) this.canvas.parentElement.scrollLeft = this.canvas.scrollWidth;
      this.follows = false;
    });
  }

  draw() {
    const { canvas, nLayers, nExperts, row, lane, first } = this;
    const shown = this.routes.slice(first);
    const scale = devicePixelRatio || 1;
    const width = Math.max(1, shown.length) * COLUMN;
    const height = nLayers * lane;
    canvas.width = width * scale;
    canvas.height = height * scale;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const style = getComputedStyle(document.documentElement);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.fillStyle = style.getPropertyValue("--panel");
    for (let layer = 0; layer < nLayers; layer++) pen.fillRect(0, layer * lane, width, row * nExperts);
    const lit = style.getPropertyValue("--lit");
    shown.forEach((routes, column) => routes?.forEach((pairs, layer) => {
      for (const [expert, weight] of pairs) {
        pen.fillStyle = `hsl(${hueOf(expert, nExperts)} 75% ${lit})`;
        pen.globalAlpha = 0.15 + 0.85 * weight;
        pen.fillRect(column * COLUMN, layer * lane + expert * row, COLUMN - 1, row);
      }
    }));
    pen.globalAlpha = 1;
    if (this.marked >= first) {
      pen.strokeStyle = style.getPropertyValue("--ink");
      pen.strokeRect((this.marked - first) * COLUMN - 0.5, 0.5, COLUMN, height - 4);
    }
  }
}
