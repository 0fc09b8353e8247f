// @ts-check
/** What stands in the place of the lines while they come from other nodes: a note, and after a run what they were. */

import { element } from "./dom.js";

/** @typedef {import("./route.js").Review} Review */

export class Linked {
    /** @param {any} words */
    constructor(words) {
        this.lines = element("ol", {});
        this.element = element(
            "div",
            { class: "hh-linked", hidden: true },
            element("p", {}, words.linked),
            this.lines,
        );
        this.words = words;
    }

    /** @type {(isLinked: boolean, review: Review | null) => void} */
    show(isLinked, review) {
        this.element.hidden = !isLinked;
        if (!isLinked) return;
        this.lines.replaceChildren(
            ...(review?.lines ?? []).map(({ cleaned, start, end, findings }) =>
                element(
                    "li",
                    {},
                    element("span", { class: "hh-when" }, this.words.span(start, end)),
                    cleaned,
                    ...findings.map(({ level, message }) =>
                        element("div", { class: `hh-finding hh-${level}` }, element("span", { class: "hh-level" }), message),
                    ),
                ),
            ),
        );
    }
}
