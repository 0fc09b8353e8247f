// @ts-check
/** Small pieces of the page: elements, selects, and text fields that grow with what is in them. */

/**
 * An element: ``class``, ``style`` variables, ``on...`` listeners and attributes; null and false leave one out.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (value === null || value === undefined || value === false) continue;
        if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
        else if (name === "value") /** @type {any} */ (made).value = value;
        else made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
}

/** @type {(label: string, attributes: object, ...children: (Node | string)[]) => HTMLButtonElement} */
export const button = (label, attributes, ...children) =>
    element("button", { type: "button", title: label, "aria-label": label, ...attributes }, ...children);

/** @type {(label: string, attributes: object) => HTMLInputElement} */
export const input = (label, attributes) =>
    element("input", { type: "text", title: label, "aria-label": label, autocomplete: "off", ...attributes });

/**
 * Give a select these choices, and a value that need not be one of them.
 * @param {HTMLSelectElement} select
 * @param {[value: string, label: string][]} choices
 * @param {string} value
 */
export function choose(select, choices, value) {
    const offered = choices.some(([each]) => each === value) ? choices : [[value, value], ...choices];
    const wanted = offered.map(([each, label]) => `${each}\n${label}`).join("\n\n");
    if (select.dataset.choices !== wanted) {
        select.dataset.choices = wanted;
        select.replaceChildren(...offered.map(([each, label]) => element("option", { value: each }, label)));
    }
    select.value = value;
}

/** Set a field's text where it differs, so that the caret stays. @param {HTMLInputElement | HTMLTextAreaElement} field @param {string} text */
export function setText(field, text) {
    if (field.value !== text) field.value = text;
}

/**
 * A text area as tall as its text: an equal text lies under it, and can carry marks.
 * @param {string} label
 * @param {object} attributes
 */
export function growingText(label, attributes) {
    const area = element("textarea", { rows: "1", "aria-label": label, spellcheck: "false", ...attributes });
    const under = element("div", { class: "hh-under", "aria-hidden": "true" });
    return { box: element("div", { class: "hh-growing" }, under, area), area, under };
}

/**
 * Show ``text`` under its area with these ranges marked; ranges are in characters as Python counts them.
 * @param {HTMLElement} under
 * @param {string} text
 * @param {{ start: number | null, end: number | null, level: string }[]} ranges
 */
export function mark(under, text, ranges) {
    const letters = [...text];
    /** @type {(Node | string)[]} */ const pieces = [];
    let at = 0;
    const marked = ranges.filter(({ start, end }) => start !== null && end !== null && start < end);
    for (const { start, end, level } of marked.sort((a, b) => Number(a.start) - Number(b.start))) {
        const from = Math.max(at, Number(start));
        const to = Math.min(letters.length, Number(end));
        if (from >= to) continue;
        pieces.push(letters.slice(at, from).join(""));
        pieces.push(element("mark", { class: `hh-${level}` }, letters.slice(from, to).join("")));
        at = to;
    }
    // A last line break needs something behind it to have a height.
    under.replaceChildren(...pieces, letters.slice(at).join(""), "\u200b");
}

/** Select characters ``start`` to ``end``, as Python counts them. @param {HTMLTextAreaElement} area @param {number} start @param {number} end */
export function select(area, start, end) {
    const letters = [...area.value];
    const units = (/** @type {number} */ characters) => letters.slice(0, characters).join("").length;
    area.focus();
    area.setSelectionRange(units(start), units(end));
}
