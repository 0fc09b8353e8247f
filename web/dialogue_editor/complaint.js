// @ts-check
/** A bar that says what went wrong, that nothing typed is lost, and what can be done. */

import { button, element } from "./dom.js";

export class Complaint {
    /** @param {any} words */
    constructor(words) {
        this.words = words;
        this.element = element("div", { class: "hh-complaint", role: "alert", hidden: true });
    }

    /** @type {(message: string, offer: string, onclick: () => void) => void} */
    tell(message, offer, onclick) {
        const text = element("span", {}, `${message} ${this.words.kept}`);
        this.element.replaceChildren(text, button(offer, { class: "hh-link", onclick }, offer));
        this.element.hidden = false;
    }

    clear() {
        this.element.hidden = true;
    }
}
