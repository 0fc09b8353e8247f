// @ts-check
/** The clip from end to end: every line in its speaker's colour, the mouth's shapes under it, and seconds. */

import { axisLength, placeSpan, ticks } from "./axis.js";
import { element } from "./dom.js";
import { linesOf, setLine, speakerWith } from "./scene.js";

/** @typedef {import("./editor.js").Desk} Desk */
/** @typedef {import("./route.js").Review} Review */

const SVG = "http://www.w3.org/2000/svg";
const STEP = 0.1; // seconds that an arrow key moves a line
const GRID = 0.05; // seconds that a dragged line snaps to
const MOUTH = 0.12; // seconds that the last shape of a line is shown
// How far the mouth is open, of 1, in each of the nine shapes of Rhubarb Lip Sync; X is at rest.
const OPEN = { A: 0.12, B: 0.35, C: 0.6, D: 1, E: 0.7, F: 0.3, G: 0.22, H: 0.5, X: 0 };

const snapped = (/** @type {number} */ seconds) => Math.max(0, Math.round(seconds / GRID) * GRID);
const short = (/** @type {number} */ seconds) => Number(seconds.toFixed(2));

export class Film {
    /** @param {Desk} desk */
    constructor(desk) {
        this.desk = desk;
        this.track = element("div", { class: "hh-track", role: "list", "aria-label": desk.words.timeline });
        this.mouths = document.createElementNS(SVG, "svg");
        for (const [name, value] of Object.entries({ class: "hh-mouths", preserveAspectRatio: "none", "aria-hidden": "true" }))
            this.mouths.setAttribute(name, value);
        this.ticks = element("div", { class: "hh-ticks", "aria-hidden": "true" });
        this.element = element("div", { class: "hh-film" }, this.track, this.mouths, this.ticks);
    }

    /**
     * @param {Review | null} review
     * @param {(symbol | null)[]} keys of the review's lines; null for one that is not in this editor
     */
    show(review, keys) {
        this.element.hidden = !review?.lines.length;
        if (!review) return;
        const length = axisLength(review);
        const held = /** @type {HTMLElement | null} */ (this.track.querySelector(":focus"))?.dataset.place;
        const beyond = element("span", { class: "hh-beyond" });
        placeSpan(beyond, review.seconds, length, length);
        const blocks = review.lines.map((_, place) => this.#block(review, keys[place] ?? null, place, length));
        this.track.replaceChildren(...blocks, beyond);
        if (held) /** @type {HTMLElement} */ (this.track.querySelector(`[data-place="${held}"]`))?.focus();
        this.mouths.setAttribute("viewBox", `0 0 ${length} 1`);
        this.mouths.replaceChildren(...review.lines.map((line, place) => this.#mouth(line, keys[place])));
        this.ticks.replaceChildren(
            ...ticks(length).map((seconds) => {
                const tick = element("span", {}, `${seconds}`);
                tick.style.left = `${(100 * seconds) / length}%`;
                return tick;
            }),
        );
        this.ticks.style.setProperty("--hh-end", `${(100 * review.seconds) / length}%`);
    }

    /**
     * A line's block: a button that leads to the line; it moves by arrow keys and by the mouse.
     * @param {Review} review
     * @param {symbol | null} key
     * @param {number} place
     * @param {number} length
     */
    #block(review, key, place, length) {
        const { desk } = this;
        const { start, end, cleaned } = review.lines[place];
        const line = linesOf(desk.scene).find((each) => each.key === key);
        const name = speakerWith(desk.scene, line?.who ?? null)?.name ?? "";
        const label = `${place + 1}. ${name} ${desk.words.span(start, end)}: ${cleaned}`;
        const block = element(
            "button",
            { type: "button", class: "hh-block", "data-place": `${place}`, title: label, "aria-label": label },
            element("span", {}, name || `${place + 1}`),
        );
        if (line?.start !== null && line) block.classList.add("hh-pinned");
        block.style.setProperty("--hh-hue", desk.hue(line?.who ?? null));
        placeSpan(block, start, end, length);
        const row = element("div", { role: "listitem", class: "hh-slot" }, block);
        if (!key) return row;
        const move = (/** @type {number | null} */ to) =>
            desk.change(setLine(desk.scene, key, { start: to === null ? null : short(to) }));
        block.addEventListener("click", () => block.dataset.dragged || desk.focus(key, "text"));
        block.addEventListener("dblclick", () => move(null));
        block.addEventListener("keydown", (event) => {
            const step = { ArrowLeft: -STEP, ArrowRight: STEP }[event.key];
            if (step) move(Math.max(0, (line?.start ?? start) + step));
            else if (event.key === "Delete" || event.key === "Backspace") move(null);
            else return;
            event.preventDefault();
        });
        block.addEventListener("pointerdown", (event) => {
            if (event.button) return;
            const seconds = length / this.track.getBoundingClientRect().width; // a screen pixel is worth
            block.setPointerCapture(event.pointerId);
            let to = start;
            block.onpointermove = ({ clientX }) => {
                to = snapped(start + (clientX - event.clientX) * seconds);
                if (Math.abs(clientX - event.clientX) > 3) block.dataset.dragged = "true";
                if (block.dataset.dragged) placeSpan(block, to, to + end - start, length);
            };
            block.onpointerup = block.onpointercancel = ({ type }) => {
                block.onpointermove = block.onpointerup = block.onpointercancel = null;
                if (block.dataset.dragged && type === "pointerup") move(to);
            };
        });
        return row;
    }

    /**
     * One path for a line's shapes: hundreds of elements would take longer to lay out than the route to answer.
     * @param {import("./route.js").LineReview} line
     * @param {symbol | null} key
     */
    #mouth({ visemes, end }, key) {
        const who = linesOf(this.desk.scene).find((each) => each.key === key)?.who ?? null;
        const shapes = visemes.map(([time, shape], index) => {
            const open = OPEN[/** @type {keyof OPEN} */ (shape)] ?? 0;
            const until = visemes[index + 1]?.[0] ?? Math.min(end, time + MOUTH);
            return open ? `M${time} ${(1 - open) / 2}H${until}v${open}H${time}z` : "";
        });
        const path = document.createElementNS(SVG, "path");
        path.setAttribute("d", shapes.join(""));
        path.style.setProperty("--hh-hue", this.desk.hue(who));
        return path;
    }
}
