// Elements of the page, made without markup in strings: what a file is called can never become code.

export const find = (id) => document.getElementById(id);

// An element with properties and attributes, and children that are elements or texts; what is null is left out.
export function make(tag, { dataset, attributes, style, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  Object.assign(element.dataset, dataset);
  for (const [name, value] of Object.entries(attributes ?? {})) if (value !== null) element.setAttribute(name, value);
  for (const [name, value] of Object.entries(style ?? {})) element.style.setProperty(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

let last = 0;

// A name for an element that another one refers to.
export function nextId(stem) {
  last += 1;
  return `${stem}-${last}`;
}
