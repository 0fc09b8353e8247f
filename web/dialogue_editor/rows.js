// @ts-check
/** The rows of the cast and of the lines, kept while the scene changes around them: a row that stays is not made anew. */

import { axisLength } from "./axis.js";
import { SpeakerRow } from "./cast.js";
import { element } from "./dom.js";
import { LineRow } from "./line.js";
import { ShotRow } from "./shot.js";

/** @typedef {import("./editor.js").Desk} Desk */
/** @typedef {import("./history.js").Place} Place */
/** @typedef {import("./route.js").Review} Review */

const HEIGHTS = { least: 330, most: 620, around: 214, speaker: 27, shot: 27, line: 64 }; // pixels

export class Rows {
    /** @type {Map<symbol, SpeakerRow | ShotRow | LineRow>} */ #rows = new Map();
    /** @type {WeakMap<Element, symbol>} */ #keys = new WeakMap();

    /** @param {Desk} desk */
    constructor(desk) {
        this.desk = desk;
        this.cast = element("ul", { class: "hh-cast", "aria-label": desk.words.cast });
        this.lines = element("ul", { class: "hh-lines", "aria-label": desk.words.lines });
    }

    /** Bring the rows in line with the scene. */
    update() {
        const { cast, shots } = this.desk.scene;
        const seen = new Set();
        let number = 0;
        /** @type {(key: symbol, Row: any, ...values: any[]) => Element} */
        const row = (key, Row, ...values) => {
            const made = this.#rows.get(key) ?? new Row(this.desk, key);
            this.#rows.set(key, made);
            this.#keys.set(made.element, key);
            seen.add(key);
            made.update(...values);
            return made.element;
        };
        const speakers = cast.map((speaker) => row(speaker.key, SpeakerRow, speaker));
        const lines = shots.flatMap((shot, place) => [
            row(shot.key, ShotRow, shot, place + 1, shots.length),
            ...shot.lines.map((line) => row(line.key, LineRow, line, ++number)),
        ]);
        arrange(this.cast, speakers);
        arrange(this.lines, lines);
        for (const key of this.#rows.keys()) if (!seen.has(key)) this.#rows.delete(key);
    }

    /** @type {(review: Review | null, keys: (symbol | null)[]) => void} */
    show(review, keys) {
        const length = review ? axisLength(review) : 1;
        const places = new Map(keys.map((key, place) => [key, place]));
        for (const [key, row] of this.#rows)
            if (row instanceof LineRow) row.show(review?.lines[places.get(key) ?? -1], length);
    }

    /** Pixels that the editor wants for its rows and what stands around them; from some number on they scroll. */
    get height() {
        const { cast, shots } = this.desk.scene;
        const { least, most, around, speaker, shot, line } = HEIGHTS;
        const lines = shots.reduce((sum, each) => sum + shot + line * each.lines.length, 0);
        return Math.min(most, Math.max(least, around + speaker * cast.length + lines));
    }

    /** @param {symbol} key */
    with(key) {
        return this.#rows.get(key)?.element;
    }

    /** The line that an element belongs to. @param {Element} at */
    lineAt(at) {
        const row = at.closest(".hh-line");
        return (row && this.#keys.get(row)) ?? null;
    }

    /** The field that has the focus. @returns {Place | null} */
    get focused() {
        const field = /** @type {HTMLElement | null} */ (document.activeElement);
        const row = field?.closest(".hh-line, .hh-speaker, .hh-shot");
        const key = row && this.#keys.get(row);
        return key && field ? { key, field: field.dataset.field ?? "text" } : null;
    }

    /** @param {Place} place */
    focus({ key, field }) {
        const target = /** @type {any} */ (this.with(key)?.querySelector(`[data-field="${field}"]`));
        if (!target) return;
        target.focus();
        if (field === "name") target.select();
        else target.setSelectionRange?.(target.value.length, target.value.length);
    }
}

/**
 * Make these the children, in this order; what is focused stays so.
 * @param {Element} parent
 * @param {Element[]} children
 */
function arrange(parent, children) {
    const field = /** @type {any} */ (document.activeElement);
    const [from, to] = [field?.selectionStart ?? null, field?.selectionEnd ?? null];
    const kept = new Set(children);
    for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
    children.forEach((child, place) => {
        if (parent.children[place] !== child) parent.insertBefore(child, parent.children[place] ?? null);
    });
    if (field === document.activeElement || !parent.contains(field)) return;
    field.focus();
    if (from !== null) field.setSelectionRange(from, to);
}
