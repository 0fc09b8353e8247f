// @ts-check
/** One line of dialogue: who says what and how, what it is read as, when it sounds, and what is wrong with it. */

import { placeSpan } from "./axis.js";
import { button, choose, element, growingText, input, mark, select, setText } from "./dom.js";
import { LANGUAGES, PACES, addSpeaker, setLine, speakerWith } from "./scene.js";

/** @typedef {import("./editor.js").Desk} Desk */
/** @typedef {import("./scene.js").Line} Line */
/** @typedef {import("./route.js").LineReview} LineReview */

const NEW = "\n"; // no speaker is called that

/**
 * Seconds in a field: undefined for what is no time, null for "as it comes".
 * @param {string} text
 */
function secondsIn(text) {
    if (!text.trim()) return null;
    const seconds = Number(text.trim().replace(",", ".").replace(/s$/, ""));
    return Number.isFinite(seconds) && seconds >= 0 ? seconds : undefined;
}

export class LineRow {
    #said = ""; // by the route, of the text as it is shown

    /**
     * @param {Desk} desk
     * @param {symbol} key
     */
    constructor(desk, key) {
        const { words } = desk;
        this.desk = desk;
        this.key = key;
        /** @type {Line | null} */ this.line = null;
        /** @type {(fields: Partial<Line>, isTyped?: boolean) => void} */
        this.set = (fields, isTyped = false) => desk.change(setLine(desk.scene, key, fields), isTyped);

        this.speaker = element("select", {
            class: "hh-who",
            "aria-label": words.speaker,
            title: words.speaker,
            "data-field": "speaker",
            onchange: () => this.#speak(this.speaker.value),
        });
        this.language = element("select", {
            "aria-label": words.language,
            title: words.language,
            "data-field": "language",
            onchange: () => this.set({ language: this.language.value }),
        });
        this.delivery = input(words.delivery, {
            class: "hh-delivery",
            placeholder: words.delivery,
            "data-field": "delivery",
            oninput: () => this.set({ delivery: this.delivery.value }, true),
        });
        this.pace = element("select", {
            "aria-label": words.pace,
            title: words.pace,
            "data-field": "pace",
            onchange: () => this.set({ pace: this.pace.value }),
        });
        this.start = this.#time("start", words.start);
        this.pause = this.#time("pause", words.pause);
        this.remove = button(words.removeLine, { class: "hh-icon", onclick: () => desk.remove(key) }, "×");
        const { box, area, under } = growingText(words.line, {
            placeholder: words.typeHere,
            "data-field": "text",
            "aria-keyshortcuts": "Enter Alt+ArrowUp Alt+ArrowDown Control+Backspace",
            oninput: () => this.#type(),
        });
        [this.area, this.under] = [area, under];

        this.said = element("span", { class: "hh-said" });
        this.typed = button(words.asTyped, { class: "hh-link", onclick: () => this.#toggle() });
        this.spoken = element("div", { class: "hh-spoken", hidden: true }, this.said, this.typed);
        this.bar = element("span", { class: "hh-bar" });
        this.range = element("span", { class: "hh-range" });
        this.measure = element("span", { class: "hh-measure" });
        this.lane = element("div", { class: "hh-lane" }, this.range, this.bar, this.measure);
        this.findings = element("ul", { class: "hh-findings" });
        this.element = element(
            "li",
            { class: "hh-line" },
            element(
                "div",
                { class: "hh-head" },
                this.speaker,
                this.language,
                this.delivery,
                this.pace,
                element("label", { class: "hh-time" }, words.at, this.start),
                element("label", { class: "hh-time" }, words.gap, this.pause),
                this.remove,
            ),
            box,
            this.spoken,
            this.lane,
            this.findings,
        );
    }

    /** @type {(name: "start" | "pause", label: string) => HTMLInputElement} */
    #time(name, label) {
        const field = input(label, {
            inputmode: "decimal",
            placeholder: this.desk.words.auto,
            "data-field": name,
            oninput: () => {
                const seconds = secondsIn(field.value);
                field.toggleAttribute("aria-invalid", seconds === undefined);
                if (seconds !== undefined) this.set({ [name]: seconds }, true);
            },
        });
        return field;
    }

    /** @param {string} choice a speaker's place in the cast, NEW, or a name that is not in it */
    #speak(choice) {
        const { desk } = this;
        if (choice === NEW) {
            const { scene, key } = addSpeaker(desk.scene, desk.words.speaker);
            desk.change(setLine(scene, this.key, { who: key }));
            desk.focus(key, "name");
        } else if (desk.scene.cast[Number(choice)]) this.set({ who: desk.scene.cast[Number(choice)].key });
    }

    #type() {
        const text = this.area.value;
        this.#unmark(text);
        this.set({ text }, true);
    }

    /** What was found in a text does not fit another. @param {string} text */
    #unmark(text) {
        mark(this.under, text, []);
        this.#said = "";
    }

    #toggle() {
        const line = this.line;
        if (line) this.set({ spell_out: !line.spell_out });
        this.area.focus();
    }

    /**
     * @param {Line} line
     * @param {number} number from 1
     */
    update(line, number) {
        const { scene, words } = this.desk;
        this.line = line;
        const speaker = speakerWith(scene, line.who);
        const names = scene.cast.map(({ name }, place) => /** @type {[string, string]} */ ([`${place}`, name || "–"]));
        const place = scene.cast.findIndex(({ key }) => key === line.who);
        const unknown = /** @type {[string, string][]} */ (speaker ? [] : [["-", line.speaker || words.nobody]]);
        choose(this.speaker, [...unknown, ...names, [NEW, words.newSpeaker]], place < 0 ? "-" : `${place}`);
        const languages = LANGUAGES.map((name) => /** @type {[string, string]} */ ([name, words[name]]));
        choose(this.language, languages, line.language);
        choose(this.pace, PACES.map((pace) => [pace, words[pace]]), line.pace);
        setText(this.delivery, line.delivery);
        for (const name of /** @type {const} */ (["start", "pause"]))
            if (secondsIn(this[name].value) !== line[name]) setText(this[name], line[name]?.toString() ?? "");
        if (this.area.value !== line.text) {
            setText(this.area, line.text);
            this.#unmark(line.text);
        }
        this.element.style.setProperty("--hh-hue", this.desk.hue(line.who));
        this.element.setAttribute(
            "aria-label",
            [`${words.line} ${number}`, speaker?.name, words[line.language]].filter(Boolean).join(", "),
        );
        this.element.dataset.number = `${number}`;
    }

    /**
     * Show what the route said of this line; nothing yet is known of a new one.
     * @param {LineReview | undefined} review
     * @param {number} length seconds that the lane is wide
     */
    show(review, length) {
        const { line } = this;
        this.lane.hidden = !review || !review.natural;
        // Most lines stay as they were while another is typed; their time may still have moved.
        const said = JSON.stringify([line?.text, line?.spell_out, review?.spoken, review?.changes, review?.findings]);
        if (this.#said !== said) this.#describe(review);
        this.#said = said;
        if (review) this.#place(review, length);
    }

    /** @param {LineReview | undefined} review */
    #describe(review) {
        const { line, desk } = this;
        this.spoken.hidden = true;
        this.findings.replaceChildren(...(review?.findings ?? []).map((finding) => this.#finding(finding)));
        if (!review || !line) return;
        const { words } = desk;
        const differs = review.spoken.replace(/\s/g, "") !== line.text.replace(/\s/g, "");
        this.spoken.hidden = line.spell_out && !differs;
        this.said.textContent = line.spell_out ? review.spoken : words.saidAsTyped;
        this.said.title = review.changes.map((each) => `${each.before} → ${each.after} (${each.reason})`).join("\n");
        const offer = line.spell_out ? words.asTyped : words.spellOut;
        this.typed.textContent = this.typed.title = this.typed.ariaLabel = offer;
        mark(this.under, line.text, review.findings);
    }

    /** @type {(review: LineReview, length: number) => void} */
    #place({ start, fast, natural, slow, units, unit }, length) {
        const { words } = this.desk;
        placeSpan(this.bar, start, start + natural, length);
        placeSpan(this.range, start + fast, start + slow, length);
        // The number stands behind the bar, or before it where there is no room behind.
        const isBefore = start + slow > 0.66 * length;
        const end = isBefore ? length - start : start + slow;
        this.measure.textContent = `${words.seconds(natural)} · ${words.units(units, unit)}`;
        this.measure.classList.toggle("hh-before", isBefore);
        this.measure.style.setProperty("--hh-at", `${(100 * end) / length}%`);
        this.lane.title = words.range(fast, natural, slow);
    }

    /** @param {import("./route.js").Finding} finding */
    #finding({ level, message, start, end, fix }) {
        const { words } = this.desk;
        const show = () => start !== null && end !== null && select(this.area, start, end);
        const apply = () => {
            this.set({ text: fix ?? "" });
            this.area.focus();
        };
        return element(
            "li",
            { class: `hh-finding hh-${level}` },
            element("span", { class: "hh-level", role: "img", "aria-label": words[level] }),
            element("span", { class: start === null ? null : "hh-places", onclick: show }, message),
            fix === null ? null : button(words.applyFix, { class: "hh-fix", title: fix, onclick: apply }, words.fix),
        );
    }
}
