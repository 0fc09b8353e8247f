// @ts-check
/** What can be added to a scene: a line, a shot, a speaker. */

import { button, element } from "./dom.js";
import { addShot, addSpeaker } from "./scene.js";

/** @param {import("./editor.js").Editor} editor */
export function addButtons(editor) {
    const { words } = editor;
    const add = (/** @type {string} */ label, /** @type {string} */ text, /** @type {() => void} */ onclick) =>
        button(label, { class: "hh-add", onclick }, `+ ${text}`);
    const grow = (/** @type {{ scene: any, key: symbol }} */ { scene, key }, /** @type {string} */ field) => {
        editor.change(scene);
        editor.focus(key, field);
    };
    return element(
        "div",
        { class: "hh-adds" },
        add(words.addLine, words.addLine, () => editor.addLine(null)),
        add(words.addShot, words.addShot, () => grow(addShot(editor.scene), "text")),
        add(words.addSpeaker, words.speaker, () => grow(addSpeaker(editor.scene, words.speaker), "name")),
    );
}
