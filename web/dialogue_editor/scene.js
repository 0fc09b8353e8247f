// @ts-check
/**
 * The scene as the editor holds it: read from the widget's text, changed by pure functions, written back.
 *
 * The text is JSON, ``{"version": 1, "frames": 0, "scene": {...}}``; the scene's fields are those of
 * conditioning/dialogue/document.py. What is not known here is kept as it came. A line refers to its speaker by
 * key, not by name, so that a name can be typed letter by letter past another one.
 */

export const VERSION = 1;
export const LANGUAGES = ["Mandarin", "Cantonese", "English", "Japanese", "Korean", "French", "German"];
export const PACES = ["very slow", "slow", "natural", "fast", "very fast"];
export const SIDES = ["", "left", "centre", "right"];
export const FRAMINGS = ["close-up", "medium close-up", "medium shot", "wide shot"];
export const FRAMING = "medium close-up"; // of a shot that does not say

/**
 * Keys are symbols: JSON leaves them out.
 * @typedef {{ key: symbol, name: string, description: string, side: string, voice: string }} Speaker
 * @typedef {{
 *     key: symbol, who: symbol | null, speaker: string, language: string, text: string, delivery: string,
 *     pace: string, start: number | null, pause: number | null, spell_out: boolean,
 * }} Line
 * @typedef {{ key: symbol, framing?: string, action: string, lines: Line[] }} Shot
 * @typedef {{ cast: Speaker[], shots: Shot[] }} Scene
 * @typedef {{ version: number, frames: number, scene: Scene }} Document
 */

/** @param {any} value */
const list = (value) => (Array.isArray(value) ? value : []);

/** @type {(given?: object) => Speaker} */
const speakerOf = (given) => ({ name: "", description: "", side: "", voice: "", ...given, key: Symbol("speaker") });

/** @type {(given?: object) => Line} */
const lineOf = (given) => ({
    speaker: "",
    language: "English",
    text: "",
    delivery: "",
    pace: "natural",
    start: null,
    pause: null,
    spell_out: true,
    who: null,
    ...given,
    key: Symbol("line"),
});

/** @type {(given?: any) => Shot} */
const shotOf = (given) => ({ action: "", ...given, lines: list(given?.lines).map(lineOf), key: Symbol("shot") });

/**
 * The document in a widget's text; a blank text is an empty document. Throws a SyntaxError for what is no scene.
 * @param {string} text
 * @returns {Document}
 */
export function read(text) {
    const given = text.trim() ? JSON.parse(text) : {};
    if (typeof given !== "object" || given === null || Array.isArray(given))
        throw new SyntaxError("an object was expected");
    const scene = given.scene ?? {};
    const cast = list(scene.cast).map(speakerOf);
    const shots = list(scene.shots).map(shotOf);
    for (const shot of shots)
        shot.lines = shot.lines.map((line) => ({
            ...line,
            who: cast.find((speaker) => speaker.name === line.speaker)?.key ?? null,
        }));
    return {
        version: VERSION,
        frames: 0,
        ...given,
        scene: { ...scene, cast, shots: shots.length ? shots : [shotOf()] },
    };
}

/**
 * The scene in plain values, with the speakers' names as they are now.
 * @param {Scene} scene
 */
export function plain(scene) {
    const names = new Map(scene.cast.map((speaker) => [speaker.key, speaker.name]));
    const lineAsPlain = (/** @type {Line} */ { key, who, ...line }) => ({
        ...line,
        speaker: (who && names.get(who)) ?? line.speaker,
    });
    return {
        ...scene,
        cast: scene.cast.map(({ key, ...speaker }) => speaker),
        shots: scene.shots.map(({ key, lines, ...shot }) => ({ ...shot, lines: lines.map(lineAsPlain) })),
    };
}

/** @param {Document} document */
export const write = (document) => JSON.stringify({ ...document, scene: plain(document.scene) });

/** All lines in the order of the film. @param {Scene} scene */
export const linesOf = (scene) => scene.shots.flatMap((shot) => shot.lines);

/** @type {(scene: Scene, key: symbol | null) => Speaker | undefined} */
export const speakerWith = (scene, key) => scene.cast.find((speaker) => speaker.key === key);

/** @type {(scene: Scene, change: (lines: Line[], shot: Shot) => Line[]) => Scene} */
const mapLines = (scene, change) => ({
    ...scene,
    shots: scene.shots.map((shot) => ({ ...shot, lines: change(shot.lines, shot) })),
});

/** @type {(scene: Scene, key: symbol, fields: Partial<Line>) => Scene} */
export const setLine = (scene, key, fields) =>
    mapLines(scene, (lines) => lines.map((line) => (line.key === key ? { ...line, ...fields } : line)));

/** @type {(scene: Scene, key: symbol, fields: Partial<Speaker>) => Scene} */
export const setSpeaker = (scene, key, fields) => ({
    ...scene,
    cast: scene.cast.map((speaker) => (speaker.key === key ? { ...speaker, ...fields } : speaker)),
});

/** @type {(scene: Scene, key: symbol, fields: Partial<Shot>) => Scene} */
export const setShot = (scene, key, fields) => ({
    ...scene,
    shots: scene.shots.map((shot) => (shot.key === key ? { ...shot, ...fields } : shot)),
});

/**
 * A speaker more, called ``name`` and a number that is free.
 * @param {Scene} scene
 * @param {string} name
 */
export function addSpeaker(scene, name) {
    const taken = new Set(scene.cast.map((speaker) => speaker.name));
    let number = scene.cast.length + 1;
    while (taken.has(`${name} ${number}`)) number += 1;
    const speaker = speakerOf({ name: `${name} ${number}` });
    return { scene: { ...scene, cast: [...scene.cast, speaker] }, key: speaker.key };
}

/** Without a speaker; whose lines keep the name. @type {(scene: Scene, key: symbol) => Scene} */
export function removeSpeaker(scene, key) {
    const name = speakerWith(scene, key)?.name ?? "";
    const orphaned = mapLines(scene, (lines) =>
        lines.map((line) => (line.who === key ? { ...line, who: null, speaker: name } : line)),
    );
    return { ...orphaned, cast: scene.cast.filter((speaker) => speaker.key !== key) };
}

/**
 * An empty line behind the line ``after``, or at the end: two people take turns, each in the language last spoken.
 * @param {Scene} scene
 * @param {symbol | null} after
 */
export function addLine(scene, after) {
    const all = linesOf(scene);
    const previous = all.find((line) => line.key === after) ?? all.at(-1);
    const others = scene.cast.filter((speaker) => speaker.key !== previous?.who);
    const who = previous && scene.cast.length !== 2 ? previous.who : (others[0]?.key ?? null);
    const language = (all.findLast((line) => line.who === who) ?? previous)?.language ?? "English";
    const line = lineOf({ who, language, speaker: who ? "" : (previous?.speaker ?? "") });
    const home = scene.shots.find((shot) => shot.lines.some(({ key }) => key === after)) ?? scene.shots.at(-1);
    const changed = mapLines(scene, (lines, shot) => {
        const place = lines.findIndex(({ key }) => key === after);
        if (shot.key !== home?.key) return lines;
        return place < 0 ? [...lines, line] : lines.toSpliced(place + 1, 0, line);
    });
    return { scene: changed, key: line.key };
}

/** @type {(scene: Scene, key: symbol) => Scene} */
export const removeLine = (scene, key) => mapLines(scene, (lines) => lines.filter((line) => line.key !== key));

/**
 * A line one place up (-1) or down (1); at a shot's edge it goes over into the next. The same scene at the ends.
 * @type {(scene: Scene, key: symbol, step: -1 | 1) => Scene}
 */
export function moveLine(scene, key, step) {
    const home = scene.shots.findIndex((shot) => shot.lines.some((line) => line.key === key));
    const lines = scene.shots[home].lines;
    const from = lines.findIndex((line) => line.key === key);
    const line = lines[from];
    const to = from + step;
    if (to >= 0 && to < lines.length)
        return setShot(scene, scene.shots[home].key, { lines: lines.toSpliced(from, 1).toSpliced(to, 0, line) });
    const next = scene.shots[home + step];
    if (!next) return scene;
    const over = step < 0 ? [...next.lines, line] : [line, ...next.lines];
    return setShot(setShot(scene, scene.shots[home].key, { lines: lines.toSpliced(from, 1) }), next.key, {
        lines: over,
    });
}

/** The line's text cut into several lines of the same speaker. @type {(scene: Scene, key: symbol, texts: string[]) => Scene} */
export const splitLine = (scene, key, texts) =>
    mapLines(scene, (lines) =>
        lines.flatMap((line) => {
            if (line.key !== key) return line;
            const [first, ...others] = texts;
            const { key: _, start: __, ...same } = line;
            return [{ ...line, text: first }, ...others.map((text) => lineOf({ ...same, text }))];
        }),
    );

/** A shot more at the end, with an empty line in it. @param {Scene} scene */
export function addShot(scene) {
    const { scene: changed, key } = addLine({ ...scene, shots: [...scene.shots, shotOf({ framing: FRAMING })] }, null);
    return { scene: changed, key };
}

/** A shot's lines go to the shot before it, and it is gone. @type {(scene: Scene, key: symbol) => Scene} */
export function joinShot(scene, key) {
    const place = scene.shots.findIndex((shot) => shot.key === key);
    const [before, gone] = [scene.shots[place - 1], scene.shots[place]];
    const joined = { ...before, lines: [...before.lines, ...gone.lines] };
    joined.action = [before.action, gone.action].filter(Boolean).join(" ");
    return { ...scene, shots: scene.shots.toSpliced(place - 1, 2, joined) };
}
