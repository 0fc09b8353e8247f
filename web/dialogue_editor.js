// @ts-check
/** Puts the dialogue editor into HappyHorse Prompt, in the place of the text that holds its scene. */

// @ts-ignore - served by ComfyUI
import { api } from "/scripts/api.js";
// @ts-ignore - served by ComfyUI
import { app } from "/scripts/app.js";
import { element } from "./dialogue_editor/dom.js";
import { Editor } from "./dialogue_editor/editor.js";
import { wordsIn } from "./dialogue_editor/words.js";

const NODE = "HappyHorsePrompt";
const WIDGET = "HAPPYHORSE_SCENE"; // how the page knows that this text has an editor
const SCENE = "scene";
const LINES = "lines"; // lines from other nodes take the place of one's own
const FIELDS = ["appearance", "setting", "lighting", "mood", "sound"]; // of the scene, in widgets of their own
const FIRST = ["framing", "action"]; // of the first shot
const LENGTH = "length"; // frames; 0 is automatic
const WIDTH = 580; // pixels
const MARGIN = 6;

/** @type {WeakMap<object, Editor>} from a node to its editor */
const EDITORS = new WeakMap();

/**
 * @typedef {{ name: string, value: any, callback?: (...values: any[]) => any, computedDisabled?: boolean }} Widget
 * @typedef {{
 *     id: number,
 *     graph: object | null,
 *     size: [width: number, height: number],
 *     computeSize: () => [width: number, height: number],
 *     setSize: (size: [width: number, height: number]) => void,
 *     widgets?: Widget[],
 *     inputs: { name: string, link: number | null, widget?: { name: string } }[],
 *     addDOMWidget: (name: string, type: string, element: HTMLElement, options: object) => Widget,
 *     setDirtyCanvas: (front: boolean, back: boolean) => void,
 * }} Node
 */

/**
 * What the node's other widgets say, as the node itself puts it together: an empty one leaves what the scene has. A
 * value that comes through a link is not known before the run.
 * @param {Node} node
 */
function around(node) {
    const linked = new Set(node.inputs?.filter(({ link }) => link != null).map(({ name }) => name));
    const known = new Map(node.widgets?.filter(({ name }) => !linked.has(name)).map(({ name, value }) => [name, value]));
    const said = (/** @type {string[]} */ names) =>
        Object.fromEntries(names.filter((name) => known.get(name)?.trim()).map((name) => [name, known.get(name)]));
    return {
        fields: said(FIELDS),
        first: said(FIRST),
        frames: known.get(LENGTH) ?? null,
        linked: linked.has(LINES),
    };
}

/**
 * Call ``after`` each time that ``owner`` calls its method ``name``, if it has one.
 * @param {any} owner
 * @param {string} name
 * @param {(...values: any[]) => void} after
 */
function follow(owner, name, after) {
    const before = owner[name];
    owner[name] = function (/** @type {any[]} */ ...values) {
        const result = before?.apply(this, values);
        after(...values);
        return result;
    };
}

/**
 * Vue nodes keep the element of the node that had the same number before, as when a step is taken back: put ours there.
 * @param {Node} node
 * @param {Editor} editor
 */
function mount(node, editor) {
    const put = () => {
        if (!editor.root.isConnected && node.graph)
            document.querySelector(`[data-node-id="${node.id}"] .hh-editor`)?.replaceWith(editor.root);
    };
    // The page has drawn its nodes after two frames at the latest.
    requestAnimationFrame(() => requestAnimationFrame(put));
}

/**
 * A drawn node grows with its editor, to the size that it is given when it is loaded again; a Vue node does by itself.
 * @param {Node} node
 * @param {Editor} editor
 */
function fit(node, editor) {
    const [width, height] = node.size;
    const needed = node.computeSize()[1];
    if (needed > height && !editor.root.closest("[data-node-id]")) node.setSize([width, needed]);
    node.setDirtyCanvas(true, true);
}

/** ComfyUI's undo learns of a change. */
function remember() {
    const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
    if (tracker?.captureCanvasState) tracker.captureCanvasState();
    else tracker?.checkState?.();
}

/**
 * The scene's widget: the editor, whose value is the scene's text.
 * @param {Node} node
 * @param {string} name
 * @param {[type: string, options?: { default?: string }]} spec
 */
function addEditor(node, name, [, options]) {
    const editor = new Editor({
        words: wordsIn(app.extensionManager?.setting?.get("Comfy.Locale")),
        fetch: (path, request) => api.fetchApi(path, request),
        canvas: () => app.canvas,
        around: () => around(node),
        changed: () => fit(node, editor),
        settled: remember,
    });
    const widget = node.addDOMWidget(name, WIDGET, editor.root, {
        margin: MARGIN,
        getValue: () => editor.text,
        setValue: (/** @type {string} */ text) => editor.load(String(text ?? "")),
        getMinHeight: () => editor.rows.height + 2 * MARGIN,
    });
    editor.load(options?.default ?? "");
    return { widget, minWidth: WIDTH, minHeight: editor.rows.height, editor };
}

app.registerExtension({
    name: "HappyHorse.DialogueEditor",

    init() {
        const href = new URL("./dialogue_editor/editor.css", import.meta.url).href;
        document.head.append(element("link", { rel: "stylesheet", href }));
    },

    getCustomWidgets: () => ({
        [WIDGET](/** @type {Node} */ node, /** @type {string} */ name, /** @type {any} */ spec) {
            const { editor, ...made } = addEditor(node, name, spec);
            EDITORS.set(node, editor);
            return made;
        },
    }),

    /** @param {any} _ @param {any} definition */
    beforeRegisterNodeDef(_, definition) {
        if (definition.name !== NODE) return;
        const spec = definition.input.required?.[SCENE] ?? definition.input.optional?.[SCENE];
        if (spec) spec[1] = { ...spec[1], widgetType: WIDGET };
    },

    /** @param {Node & { comfyClass: string }} node */
    nodeCreated(node) {
        const editor = EDITORS.get(node);
        if (!editor) return;
        const refresh = () => editor.refresh();
        for (const widget of node.widgets ?? []) if (widget.name !== SCENE) follow(widget, "callback", refresh);
        follow(node, "onConfigure", () => {
            refresh();
            mount(node, editor);
        });
        follow(node, "onConnectionsChange", refresh);
        follow(node, "onRemoved", () => editor.route.stop());
        follow(node, "onExecuted", (output) => {
            const [review] = output?.review ?? [];
            if (review) editor.ran(typeof review === "string" ? JSON.parse(review) : review);
        });
    },
});
