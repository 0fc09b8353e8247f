// @ts-check
/** A shot's head: its framing, and what happens in it besides speaking. The first shot's are the node's own fields. */

import { button, choose, element, input, setText } from "./dom.js";
import { FRAMING, FRAMINGS, joinShot, setShot } from "./scene.js";

/** @typedef {import("./editor.js").Desk} Desk */
/** @typedef {import("./scene.js").Shot} Shot */

export class ShotRow {
    /**
     * @param {Desk} desk
     * @param {symbol} key
     */
    constructor(desk, key) {
        const { words } = desk;
        this.desk = desk;
        /** @type {(fields: Partial<Shot>, isTyped?: boolean) => void} */
        const set = (fields, isTyped = false) => desk.change(setShot(desk.scene, key, fields), isTyped);
        this.title = element("span", { class: "hh-title" });
        this.framing = element("select", {
            "aria-label": words.framing,
            title: words.framing,
            "data-field": "framing",
            onchange: () => set({ framing: this.framing.value }),
        });
        this.action = input(words.action, {
            placeholder: words.actionHint,
            "data-field": "action",
            oninput: () => set({ action: this.action.value }, true),
        });
        const join = () => desk.change(joinShot(desk.scene, key));
        this.join = button(words.joinShot, { class: "hh-icon", onclick: join }, "×");
        this.element = element("li", { class: "hh-shot" }, this.title, this.framing, this.action, this.join);
    }

    /**
     * @param {Shot} shot
     * @param {number} number from 1
     * @param {number} total
     */
    update(shot, number, total) {
        const { words } = this.desk;
        this.element.hidden = total === 1 && !shot.action;
        this.title.textContent = `${words.shot} ${number}`;
        this.framing.hidden = this.join.hidden = number === 1;
        choose(this.framing, FRAMINGS.map((each) => [each, words[each]]), shot.framing ?? FRAMING);
        setText(this.action, shot.action);
        this.element.setAttribute("aria-label", `${words.shot} ${number}`);
    }
}
