// @ts-check
/** The cast: a row for each speaker, with the colour that their lines have. */

import { button, choose, element, input, setText } from "./dom.js";
import { SIDES, addSpeaker, removeSpeaker, setSpeaker } from "./scene.js";

/** @typedef {import("./editor.js").Desk} Desk */
/** @typedef {import("./scene.js").Speaker} Speaker */

const TEXTS = /** @type {const} */ (["name", "description", "voice"]);

export class SpeakerRow {
    /**
     * @param {Desk} desk
     * @param {symbol} key
     */
    constructor(desk, key) {
        const { words } = desk;
        this.desk = desk;
        /** @type {(fields: Partial<Speaker>, isTyped?: boolean) => void} */
        const set = (fields, isTyped = false) => desk.change(setSpeaker(desk.scene, key, fields), isTyped);
        const text = (/** @type {typeof TEXTS[number]} */ name) => {
            const field = input(words[name], {
                class: `hh-${name}`,
                placeholder: words[`${name}Hint`],
                "data-field": name,
                oninput: () => set({ [name]: field.value }, true),
            });
            return field;
        };
        this.name = text("name");
        this.description = text("description");
        this.voice = text("voice");
        this.side = element("select", {
            "aria-label": words.side,
            title: words.side,
            "data-field": "side",
            onchange: () => set({ side: this.side.value }),
        });
        this.element = element(
            "li",
            { class: "hh-speaker" },
            element("span", { class: "hh-dot", "aria-hidden": "true" }),
            this.name,
            this.description,
            this.voice,
            this.side,
            button(words.removeSpeaker, { class: "hh-icon", onclick: () => this.#remove(key) }, "×"),
        );
    }

    /** @param {symbol} key */
    #remove(key) {
        const { desk } = this;
        const place = desk.scene.cast.findIndex((speaker) => speaker.key === key);
        desk.change(removeSpeaker(desk.scene, key));
        const next = desk.scene.cast[place] ?? desk.scene.cast.at(-1);
        if (next) desk.focus(next.key, "name");
    }

    /** @param {Speaker} speaker */
    update(speaker) {
        const { words } = this.desk;
        for (const name of TEXTS) setText(this[name], speaker[name]);
        choose(this.side, SIDES.map((side) => [side, side ? words[side] : words.anySide]), speaker.side);
        this.element.style.setProperty("--hh-hue", this.desk.hue(speaker.key));
        this.element.setAttribute("aria-label", speaker.name);
    }
}
