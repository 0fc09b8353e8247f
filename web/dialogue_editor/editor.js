// @ts-check
/** The dialogue editor: a cast, its lines, and what the route makes of them. Knows no node and no ComfyUI. */

import { addButtons } from "./adds.js";
import { Complaint } from "./complaint.js";
import { element } from "./dom.js";
import { Film } from "./film.js";
import { History } from "./history.js";
import { containEvents } from "./keys.js";
import { Linked } from "./linked.js";
import { Route } from "./route.js";
import { Rows } from "./rows.js";
import * as scenes from "./scene.js";
import { Summary } from "./summary.js";

/** @typedef {import("./history.js").Place} Place */
/** @typedef {import("./route.js").Review} Review */
/** @typedef {import("./scene.js").Scene} Scene */
/** @typedef {Pick<Editor, "words" | "scene" | "change" | "focus" | "remove" | "hue">} Desk what a row needs */
/**
 * @typedef {{
 *     words: any,
 *     fetch: (path: string, options: RequestInit) => Promise<Response>,
 *     canvas: () => any,
 *     around: () => { fields: object, first: object, frames: number | null, linked: boolean },
 *     changed: () => void,
 *     settled: () => void,
 * }} Host ``around`` is what the node says over the scene and over its first shot; ``settled`` follows a change that
 *     is a step of its own
 */

const HUES = [255, 45, 150, 340, 200, 95, 300, 15]; // degrees, of the cast in order

export class Editor {
    /** @type {History} */ #history = new History(scenes.read(""));
    /** @type {{ review: Review, keys: (symbol | null)[] } | null} */ #answer = null;
    /** @type {symbol[]} */ #asked = [];
    #text = "";
    #isUnreadable = false;

    /** @param {Host} host */
    constructor(host) {
        this.host = host;
        this.words = host.words;
        this.route = new Route({
            fetch: host.fetch,
            question: () => this.#question(),
            answered: (review) => this.#answered(review, this.#asked),
            failed: (message) => this.#complain(message),
        });
        this.rows = new Rows(this);
        this.film = new Film(this);
        this.summary = new Summary(this);
        this.linked = new Linked(this.words);
        this.empty = element("p", { class: "hh-empty" }, this.words.empty);
        this.complaint = new Complaint(this.words);
        this.news = element("div", { class: "hh-news", role: "status" });
        this.root = this.#layOut();
        this.root.addEventListener("change", () => host.settled());
        containEvents(this, host.canvas);
        this.#render();
    }

    #layOut() {
        const { words } = this;
        const { cast, lines } = this.rows;
        return element(
            "div",
            { class: "hh-editor", role: "group", "aria-label": words.editor, "data-capture-wheel": "true" },
            element("div", { class: "hh-scroll" }, this.linked.element, cast, lines, this.empty, addButtons(this)),
            this.complaint.element,
            element("div", { class: "hh-foot" }, this.film.element, this.summary.element),
            this.news,
        );
    }

    get scene() {
        return this.#history.document.scene;
    }

    /** The widget's value: as it was loaded, until something is changed. */
    get text() {
        return this.#text;
    }

    /** @param {string} text */
    load(text) {
        if (text === this.#text) return;
        this.#text = text;
        this.#answer = null;
        this.complaint.clear();
        this.#isUnreadable = false;
        try {
            this.#history = new History(scenes.read(text));
        } catch (error) {
            this.#isUnreadable = true;
            this.#history = new History(scenes.read(""));
            const reason = this.words.unreadable(/** @type {Error} */ (error).message);
            this.complaint.tell(reason, this.words.startAnew, () => this.#startAnew());
        }
        this.#render();
        this.refresh();
    }

    #startAnew() {
        this.load("");
        this.host.changed();
        this.host.settled();
    }

    /** Something beside the scene has changed: ask anew. */
    refresh() {
        const { linked } = this.host.around();
        this.root.classList.toggle("hh-is-linked", linked || this.#isUnreadable);
        if (linked || this.#isUnreadable) this.route.stop();
        else this.route.ask();
        this.#show();
    }

    /**
     * What a run found: the only word on lines that come from other nodes, and exact numbers for those of one's own.
     * @param {Review} review
     */
    ran(review) {
        const known = this.#answer?.review.lines ?? [];
        if (this.host.around().linked) this.#answered(review, review.lines.map(() => null));
        else if (review.lines.every(({ cleaned }, place) => cleaned === known[place]?.cleaned))
            this.#answered(review, this.#asked);
    }

    /**
     * Take up a changed scene; typing at one place is one step back, everything else a step of its own.
     * @param {Scene} scene
     * @param {boolean} [isTyped]
     */
    change(scene, isTyped = false) {
        if (scene === this.scene) return;
        this.#history.change({ ...this.#history.document, scene }, this.rows.focused, isTyped);
        this.#changed(!isTyped);
    }

    undo() {
        this.#went(this.#history.undo());
    }

    redo() {
        this.#went(this.#history.redo());
    }

    /** @param {symbol | null} after */
    addLine(after) {
        const scene = this.scene.cast.length ? this.scene : scenes.addSpeaker(this.scene, this.words.speaker).scene;
        const added = scenes.addLine(scene, after);
        this.change(added.scene);
        this.focus(added.key, "text");
    }

    /** @param {symbol} key */
    remove(key) {
        const lines = scenes.linesOf(this.scene);
        const place = lines.findIndex((line) => line.key === key);
        this.change(scenes.removeLine(this.scene, key));
        const next = lines[place - 1] ?? lines[place + 1];
        if (next) this.focus(next.key, "text");
        else /** @type {HTMLElement} */ (this.root.querySelector(".hh-add")).focus();
        this.#say(this.words.removed(place + 1));
    }

    /** @type {(key: symbol, step: -1 | 1) => void} */
    move(key, step) {
        this.change(scenes.moveLine(this.scene, key, step));
        this.rows.with(key)?.scrollIntoView({ block: "nearest" });
        this.#say(this.words.movedTo(scenes.linesOf(this.scene).findIndex((line) => line.key === key) + 1));
    }

    /** @type {(key: symbol, field: string) => void} */
    focus(key, field) {
        this.rows.focus({ key, field });
    }

    /** The colour of a speaker, in degrees. @param {symbol | null} who */
    hue(who) {
        const place = this.scene.cast.findIndex((speaker) => speaker.key === who);
        return place < 0 ? "" : `${HUES[place % HUES.length]}`;
    }

    /** @param {Place | null | undefined} place */
    #went(place) {
        if (place === undefined) return this.#say(this.words.noMore);
        this.#changed(true);
        if (place && this.rows.with(place.key)) this.rows.focus(place);
        else if (!this.rows.focused) this.focus(scenes.linesOf(this.scene).at(-1)?.key ?? Symbol("none"), "text");
    }

    /** @param {boolean} isStep */
    #changed(isStep) {
        this.#text = scenes.write(this.#history.document);
        this.complaint.clear();
        this.#render(isStep);
        this.host.changed();
        if (isStep) this.host.settled();
        this.route.ask();
    }

    #question() {
        const { fields, first, frames } = this.host.around();
        const scene = scenes.plain(this.scene);
        this.#asked = scenes.linesOf(this.scene).map((line) => line.key);
        const shots = [{ ...scene.shots[0], ...first }, ...scene.shots.slice(1)];
        return { scene: { ...scene, ...fields, shots }, frames: frames ?? this.#history.document.frames };
    }

    /** @type {(review: Review, keys: (symbol | null)[]) => void} */
    #answered(review, keys) {
        this.#answer = { review, keys };
        this.complaint.clear();
        if (review.error) this.#complain(review.error);
        this.#show();
    }

    /** @param {string} message */
    #complain(message) {
        this.complaint.tell(message, this.words.again, () => this.refresh());
    }

    /** @param {string} text */
    #say(text) {
        this.news.textContent = text;
    }

    #render(isStep = true) {
        this.rows.update();
        this.empty.hidden = scenes.linesOf(this.scene).length > 0;
        this.root.style.minHeight = `${this.rows.height}px`;
        // What was found in a text does not fit the text that has just been typed.
        if (isStep) this.#show();
    }

    #show() {
        const { review = null, keys = [] } = this.#answer ?? {};
        this.rows.show(review, keys);
        this.film.show(review, keys);
        this.summary.show(review);
        this.linked.show(this.host.around().linked, review);
    }
}
