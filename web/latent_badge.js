// @ts-check
/** A line on HappyHorse Empty Latent that says what its numbers mean: seconds, size and tokens. */

// @ts-ignore - served by ComfyUI
import { app } from "/scripts/app.js";

const NODE = "HappyHorseEmptyLatent";
const FPS = 25;
const FRAMES_PER_LATENT = 4; // after the first
const PIXELS_PER_TOKEN = 32; // a side: cells of 16 pixels, patches of 2 cells
const LINE_HEIGHT = 22; // pixels
const MARGIN = 2; // on all sides

/**
 * @typedef {{ name: string, value: any, serialize?: boolean, callback?: (...values: any[]) => any }} Widget
 * @typedef {{
 *     comfyClass: string,
 *     widgets: Widget[],
 *     inputs: { link: number | null, widget?: { name: string } }[],
 *     onConfigure?: (...values: any[]) => any,
 *     onConnectionsChange?: (...values: any[]) => any,
 *     addDOMWidget: (name: string, type: string, element: HTMLElement, options: object) => Widget,
 * }} Node
 */

/**
 * What a latent of these numbers is; a number that comes through a link is not known before the run.
 * @param {{ width?: number, height?: number, length?: number, batch_size?: number }} numbers
 * @returns {{ line: string, detail: string }}
 */
function describe({ width, height, length, batch_size }) {
    const seconds = length === undefined ? "? s" : `${(length / FPS).toFixed(2)} s`;
    const size = `${width ?? "?"}×${height ?? "?"}`;
    const films = batch_size === undefined ? " · ? films" : batch_size > 1 ? ` · ${batch_size} films` : "";
    if (width === undefined || height === undefined || length === undefined)
        return { line: `${seconds} · ${size}${films}`, detail: "A linked number is known when it runs." };
    const rows = Math.floor(height / PIXELS_PER_TOKEN);
    const columns = Math.floor(width / PIXELS_PER_TOKEN);
    const video = (Math.floor((length - 1) / FRAMES_PER_LATENT) + 1) * rows * columns;
    return {
        line: `${seconds} · ${size} · ${video + length} tokens${films}`,
        detail: `${video} video and ${length} audio tokens; those of the prompt are extra.`,
    };
}

/**
 * The node's widgets by name, without those that take their value from a link.
 * @param {Node} node
 */
function knownNumbers(node) {
    const linked = new Set(
        node.inputs.filter((input) => input.widget && input.link != null).map((input) => input.widget?.name),
    );
    return Object.fromEntries(
        node.widgets.filter(({ name }) => !linked.has(name)).map(({ name, value }) => [name, value]),
    );
}

/**
 * Call ``after`` each time that ``owner`` calls its method ``name``, if it has one.
 * @param {any} owner
 * @param {string} name
 * @param {() => void} after
 */
function follow(owner, name, after) {
    const before = owner[name];
    owner[name] = function (/** @type {any[]} */ ...values) {
        const result = before?.apply(this, values);
        after();
        return result;
    };
}

app.registerExtension({
    name: "HappyHorse.LatentBadge",

    /** @param {Node} node */
    nodeCreated(node) {
        if (node.comfyClass !== NODE) return;
        const badge = document.createElement("div");
        badge.className = "happyhorse-latent-badge";
        // The theme's own colours, so that it reads in light and in dark.
        badge.style.cssText = `font: 12px/${LINE_HEIGHT}px sans-serif; color: var(--input-text);
            text-align: center; white-space: nowrap; overflow: hidden; text-overflow: ellipsis;`;
        const update = () => {
            const { line, detail } = describe(knownNumbers(node));
            badge.textContent = line;
            badge.title = detail;
        };
        for (const widget of node.widgets) follow(widget, "callback", update);
        follow(node, "onConfigure", update);
        follow(node, "onConnectionsChange", update);
        const line = node.addDOMWidget("clip", "happyhorse_badge", badge, {
            serialize: false, // not a value of the prompt
            margin: MARGIN,
            getMinHeight: () => LINE_HEIGHT + 2 * MARGIN,
            getMaxHeight: () => LINE_HEIGHT + 2 * MARGIN,
        });
        line.serialize = false; // nor of the workflow
        update();
    },
});
