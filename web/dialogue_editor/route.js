// @ts-check
/** Asks the pack's Python what it makes of a scene: at once after a rest, at most every 120 ms while one types. */

const PATH = "/happyhorse/dialogue";
const WAIT = 120; // milliseconds between two questions

/**
 * @typedef {{ level: "error" | "warning" | "note", code: string, message: string,
 *     start: number | null, end: number | null, fix: string | null }} Finding
 * @typedef {{ cleaned: string, spoken: string, spaced: string,
 *     changes: { start: number, before: string, after: string, reason: string }[],
 *     units: number, unit: "syllable" | "mora" | "character", start: number, end: number,
 *     slow: number, natural: number, fast: number, visemes: [number, string][], findings: Finding[] }} LineReview
 * @typedef {{ prompt: string, negative: string, frames: number, seconds: number,
 *     tokens: { count: number, limit: number, exact: boolean },
 *     fill: { ratio: number, level: "under" | "good" | "tight" | "over" },
 *     lines: LineReview[], findings: Finding[], report: string, error: string | null }} Review
 */

export class Route {
    #timer = 0;
    #last = -Infinity;
    /** @type {AbortController | null} */ #pending = null;

    /**
     * @param {{
     *     fetch: (path: string, options: RequestInit) => Promise<Response>,
     *     question: () => object,
     *     answered: (review: Review) => void,
     *     failed: (message: string) => void,
     * }} parts ``question`` is called when it is time to ask, not before
     */
    constructor({ fetch, question, answered, failed }) {
        this.fetch = fetch;
        this.question = question;
        this.answered = answered;
        this.failed = failed;
    }

    /** Something has changed: what is on its way is out of date. */
    ask() {
        this.#pending?.abort();
        clearTimeout(this.#timer);
        const wait = Math.max(0, this.#last + WAIT - performance.now());
        if (wait) this.#timer = setTimeout(() => this.#send(), wait);
        else this.#send();
    }

    stop() {
        this.#pending?.abort();
        clearTimeout(this.#timer);
    }

    async #send() {
        this.#last = performance.now();
        const pending = (this.#pending = new AbortController());
        try {
            const answer = await this.fetch(PATH, {
                method: "POST",
                headers: { "Content-Type": "application/json" },
                body: JSON.stringify(this.question()),
                signal: pending.signal,
            });
            const text = await answer.text();
            if (pending.signal.aborted) return;
            const review = parsed(text);
            if (answer.ok && review?.lines) this.answered(review);
            else this.failed(review?.error || `${answer.status} ${answer.statusText || text.slice(0, 200)}`.trim());
        } catch (error) {
            if (!pending.signal.aborted) this.failed(String(/** @type {Error} */ (error).message ?? error));
        }
    }
}

/** @param {string} text */
function parsed(text) {
    try {
        return JSON.parse(text);
    } catch {
        return null;
    }
}
