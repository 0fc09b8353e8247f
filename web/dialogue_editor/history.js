// @ts-check
/** Undo and redo of whole documents; what is typed at one place without a pause is one step. */

/** @typedef {import("./scene.js").Document} Document */
/** @typedef {{ key: symbol, field: string }} Place where a change was made */
/** @typedef {{ document: Document, place: Place | null }} Step */

const TYPING_PAUSE = 900; // milliseconds; a longer one begins a new step
const STEPS = 200;

export class History {
    /** @type {Step[]} */ #past = [];
    /** @type {Step[]} */ #future = [];
    /** @type {Place | null} */ #typing = null;
    #time = 0;

    /** @param {Document} document */
    constructor(document) {
        this.document = document;
    }

    /** @type {(document: Document, place: Place | null, isTyped: boolean) => void} */
    change(document, place, isTyped) {
        const now = performance.now();
        const goesOn = isTyped && this.#typing?.key === place?.key && this.#typing?.field === place?.field;
        if (!goesOn || now - this.#time > TYPING_PAUSE) this.#past.push({ document: this.document, place });
        if (this.#past.length > STEPS) this.#past.shift();
        [this.#typing, this.#time, this.#future, this.document] = [isTyped ? place : null, now, [], document];
    }

    /** Where the change was made that is taken back; undefined when there is none. */
    undo() {
        return this.#step(this.#past, this.#future);
    }

    redo() {
        return this.#step(this.#future, this.#past);
    }

    /** @type {(from: Step[], to: Step[]) => Place | null | undefined} */
    #step(from, to) {
        const step = from.pop();
        if (!step) return undefined;
        to.push({ document: this.document, place: step.place });
        this.#typing = null;
        this.document = step.document;
        return step.place;
    }
}
