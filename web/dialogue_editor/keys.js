// @ts-check
/** Keys, wheel, clipboard and mouse of the editor: what it uses stays in it, what is ComfyUI's goes on to ComfyUI. */

import { linesOf, splitLine } from "./scene.js";

/** @typedef {import("./editor.js").Editor} Editor */

const HELD = new Set(["Control", "Shift", "Alt", "Meta"]);
const MIDDLE = 1; // a mouse's wheel, pressed
const MIDDLE_HELD = 4;
const MOST = 200; // lines that a pasted text becomes

/** Shortcuts that mean the same while one writes: run, and save. @param {KeyboardEvent} event */
const isTheHosts = (event) =>
    HELD.has(event.key) || ((event.ctrlKey || event.metaKey) && (event.key === "Enter" || event.key === "s"));

/**
 * @param {Editor} editor
 * @param {() => any} canvas ComfyUI's
 */
export function containEvents(editor, canvas) {
    const { root } = editor;
    root.addEventListener("keydown", (event) => {
        if (isTheHosts(event)) return;
        event.stopPropagation();
        // Enter, while an input method is open, chooses a word.
        if (!event.isComposing && event.keyCode !== 229 && pressed(editor, event)) event.preventDefault();
    });
    root.addEventListener("keyup", (event) => isTheHosts(event) || event.stopPropagation());
    // ComfyUI copies and pastes nodes; here it is text.
    for (const name of ["keypress", "copy", "cut", "paste", "dblclick"])
        root.addEventListener(name, (event) => event.stopPropagation());
    root.addEventListener("paste", (event) => {
        const text = /** @type {ClipboardEvent} */ (event).clipboardData?.getData("text") ?? "";
        if (pasted(editor, /** @type {HTMLElement} */ (event.target), text)) event.preventDefault();
    });
    // The browser would take back what was typed last here even when the key is meant for the canvas.
    root.addEventListener("beforeinput", (event) => {
        if (event.inputType.startsWith("history")) event.preventDefault();
    });
    root.addEventListener("contextmenu", (event) => {
        if (/** @type {HTMLElement} */ (event.target).closest("input, textarea, pre")) event.stopPropagation();
    });
    root.addEventListener(
        "wheel",
        (event) => {
            const scrolls = (/** @type {Element} */ each) =>
                each.scrollHeight > each.clientHeight && getComputedStyle(each).overflowY === "auto";
            const vertical = !event.ctrlKey && !event.metaKey && Math.abs(event.deltaY) >= Math.abs(event.deltaX);
            if (vertical && event.composedPath().some((each) => each instanceof Element && root.contains(each) && scrolls(each)))
                return;
            event.preventDefault();
            canvas()?.processMouseWheel(event);
        },
        { passive: false },
    );
    root.addEventListener("pointerdown", (event) => event.button === MIDDLE && canvas()?.processMouseDown(event));
    root.addEventListener("pointermove", (event) => event.buttons & MIDDLE_HELD && canvas()?.processMouseMove(event));
    root.addEventListener("pointerup", (event) => event.button === MIDDLE && canvas()?.processMouseUp(event));
}

/**
 * Do what a key means here; true where it means something.
 * @param {Editor} editor
 * @param {KeyboardEvent} event
 */
function pressed(editor, event) {
    const field = /** @type {HTMLInputElement} */ (event.target);
    const isText = field.matches("textarea, input");
    const key = editor.rows.lineAt(field);
    const control = event.ctrlKey || event.metaKey;
    const letter = event.key.toLowerCase();
    if (event.key === "Escape") {
        field.blur();
        return true;
    }
    // On buttons and lists ComfyUI hears these first and takes its own step back, which holds the scene as well.
    if (isText && control && !event.altKey && (letter === "z" || letter === "y")) {
        if (letter === "y" || event.shiftKey) editor.redo();
        else editor.undo();
        return true;
    }
    if (!key) return false;
    if (isText && event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
        editor.move(key, event.key === "ArrowUp" ? -1 : 1);
        return true;
    }
    if (isText && control && event.key === "Backspace") {
        editor.remove(key);
        return true;
    }
    if (control || event.altKey || !isText) return false;
    if (event.key === "Enter") {
        if (field.matches("textarea")) editor.addLine(key);
        else editor.focus(key, "text");
        return true;
    }
    return field.matches("textarea") && walked(editor, event, key, /** @type {any} */ (field));
}

/**
 * From one line's text to the next by the arrow keys, and back over an empty line by Backspace.
 * @type {(editor: Editor, event: KeyboardEvent, key: symbol, area: HTMLTextAreaElement) => boolean}
 */
function walked(editor, event, key, area) {
    const lines = linesOf(editor.scene);
    const place = lines.findIndex((line) => line.key === key);
    const caret = area.selectionStart === area.selectionEnd ? area.selectionStart : -1;
    const next = { ArrowUp: caret === 0 && lines[place - 1], ArrowDown: caret === area.value.length && lines[place + 1] };
    const to = next[/** @type {keyof next} */ (event.key)];
    if (to && !event.shiftKey) editor.focus(to.key, "text");
    else if (event.key === "Backspace" && !area.value && lines.length > 1) editor.remove(key);
    else return false;
    return true;
}

/**
 * Several lines of text pasted into a line become as many lines; anything else is the browser's.
 * @type {(editor: Editor, field: HTMLElement, text: string) => boolean}
 */
function pasted(editor, field, text) {
    const key = editor.rows.lineAt(field);
    const texts = text.split(/\r\n|\r|\n/).map((each) => each.trim()).filter(Boolean);
    if (!key || !(field instanceof HTMLTextAreaElement) || texts.length < 2) return false;
    const { selectionStart: from, selectionEnd: to, value } = field;
    texts[0] = value.slice(0, from) + texts[0];
    texts[texts.length - 1] += value.slice(to);
    if (texts.length > MOST) return false;
    editor.change(splitLine(editor.scene, key, texts));
    return true;
}
