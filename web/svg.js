// Parts of drawings in SVG.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Makes an element of a drawing.
 *
 * @template {keyof SVGElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string | number>} [attributes]
 * @param {...Node} children
 */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/**
 * @param {Record<string, string | number>} attributes
 * @param {string | number} text
 */
export function label(attributes, text) {
  const made = svg("text", attributes);
  made.textContent = String(text);
  return made;
}

/**
 * Returns a place in pixels, as exact as it can be seen.
 *
 * @param {number} place
 */
export function tenths(place) {
  return Math.round(place * 10) / 10;
}

/**
 * Returns round numbers that enclose a range, evenly spaced, with 0 among them where it is inside.
 *
 * @param {number} low
 * @param {number} high
 * @param {number} count About how many.
 */
export function ticks(low, high, count) {
  if (low === high) high = low + 1;
  const rough = (high - low) / (count - 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5].find((factor) => factor * power >= rough * 0.999) ?? 10);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) =>
    Number(((first + index) * step).toPrecision(6)),
  );
}
