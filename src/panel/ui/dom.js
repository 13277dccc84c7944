// Builds elements. Text only ever becomes a text node, so a name that a client chose is never markup.

const SVG = 'http://www.w3.org/2000/svg';

function fill(element, properties, children) {
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === 'on') {
      for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    } else if (key === 'value' || key === 'checked' || key === 'selected' || key === 'indeterminate') {
      element[key] = value;
    } else {
      element.setAttribute(key === 'className' ? 'class' : key, value === true ? '' : String(value));
    }
  }
  add(element, children);
  return element;
}

export function add(element, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === '') continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

export const h = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);
export const svg = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

export function replace(element, ...children) {
  element.replaceChildren();
  return add(element, children);
}

let lastId = 0;
export const newId = (prefix) => `${prefix}-${(lastId += 1)}`;

export function button(label, onClick, { kind = '', ...properties } = {}) {
  return h('button', { type: 'button', class: `button ${kind}`.trim(), on: { click: onClick }, ...properties }, label);
}

/** The sign of each kind of state, so that its colour is never alone. */
export const SIGNS = { good: '✓', warn: '!', bad: '✕', info: 'i', idle: '○' };

export const isHTMLInput = (element) =>
  element instanceof HTMLElement && (element.matches('input, textarea, select') || element.isContentEditable);

/** Says that the first data of a view is shown. */
export const markReady = (page) => {
  page.dataset.ready = '';
};
