// @ts-check
/** What the scene comes to: how full the clip is, how many tokens, what is wrong with the whole, the prompt. */

import { button, element } from "./dom.js";

/** @typedef {import("./editor.js").Desk} Desk */
/** @typedef {import("./route.js").Review} Review */

const PAGES = /** @type {const} */ (["prompt", "negative", "report"]);
const COPIED = 1200; // milliseconds that a copy is confirmed

export class Summary {
    /** @type {Review | null} */ #review = null;
    /** @type {typeof PAGES[number]} */ #page = "prompt";

    /** @param {Desk} desk */
    constructor(desk) {
        const { words } = desk;
        this.words = words;
        this.fill = new Meter(words.fill);
        this.tokens = new Meter(words.tokens);
        this.length = element("span", { class: "hh-length" });
        this.meters = element(
            "div",
            { class: "hh-meters" },
            this.fill.element,
            this.length,
            this.tokens.element,
        );
        this.findings = element("ul", { class: "hh-findings" });
        this.text = element("pre", { class: "hh-text", tabindex: "0" });
        this.tabs = PAGES.map((page) =>
            button(words[page], { role: "tab", onclick: () => this.#turn(page) }, words[page]),
        );
        this.copy = button(words.copy, { class: "hh-link", onclick: () => this.#copy() }, words.copy);
        this.fold = element(
            "details",
            { class: "hh-fold" },
            element("summary", {}, words.prompt),
            element(
                "div",
                { class: "hh-pages" },
                element("div", { role: "tablist", class: "hh-tabs" }, ...this.tabs),
                this.copy,
            ),
            this.text,
        );
        this.element = element("div", { class: "hh-summary" }, this.meters, this.findings, this.fold);
        this.#turn("prompt");
    }

    /** @param {Review | null} review */
    show(review) {
        this.#review = review;
        this.element.hidden = !review;
        if (!review) return;
        const { words } = this;
        const { ratio, level } = review.fill;
        this.fill.show(ratio, `${Math.round(100 * ratio)} % ${words[level]}`, level);
        const { count, limit, exact } = review.tokens;
        const tokens = `${exact ? "" : `${words.about} `}${count} / ${limit}`;
        this.tokens.show(count / limit, tokens, count > limit ? "over" : "good");
        this.length.textContent = words.length(review.seconds, review.frames);
        this.findings.replaceChildren(
            ...review.findings.map(({ level, message }) =>
                element(
                    "li",
                    { class: `hh-finding hh-${level}` },
                    element("span", { class: "hh-level", role: "img", "aria-label": words[level] }),
                    message,
                ),
            ),
        );
        this.#turn(this.#page);
    }

    /** @param {typeof PAGES[number]} page */
    #turn(page) {
        this.#page = page;
        this.text.textContent = this.#review?.[page] ?? "";
        PAGES.forEach((each, place) => this.tabs[place].setAttribute("aria-selected", String(each === page)));
    }

    async #copy() {
        const text = this.text.textContent ?? "";
        try {
            await navigator.clipboard.writeText(text);
        } catch {
            // A page that is not served securely has no clipboard; the old way needs the text selected.
            getSelection()?.selectAllChildren(this.text);
            document.execCommand("copy");
        }
        this.copy.textContent = this.words.copied;
        setTimeout(() => (this.copy.textContent = this.words.copy), COPIED);
    }
}

/** A bar that fills, with its number and a word beside it. */
class Meter {
    /** @param {string} label */
    constructor(label) {
        this.bar = element("span", {});
        this.word = element("span", { class: "hh-word" });
        this.element = element(
            "div",
            { class: "hh-meter", role: "meter", "aria-label": label, "aria-valuemin": "0" },
            element("span", { class: "hh-label" }, label),
            element("span", { class: "hh-gauge" }, this.bar),
            this.word,
        );
    }

    /**
     * @param {number} ratio
     * @param {string} word
     * @param {string} level
     */
    show(ratio, word, level) {
        this.bar.style.width = `${100 * Math.min(1, ratio)}%`;
        this.word.textContent = word;
        this.element.dataset.level = level;
        this.element.setAttribute("aria-valuemax", "100");
        this.element.setAttribute("aria-valuenow", `${Math.round(100 * ratio)}`);
        this.element.setAttribute("aria-valuetext", word);
    }
}
