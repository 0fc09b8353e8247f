// @ts-check
/** Places on the clip's time axis, as shares of its width. */

const STEPS = [0.5, 1, 2, 5, 10, 20, 60]; // seconds between two ticks
const TICKS = 11; // that fit side by side

/** @typedef {import("./route.js").Review} Review */

/**
 * Seconds that the axis must show: the clip, and what sticks out of it.
 * @param {Review} review
 */
export const axisLength = (review) =>
    Math.max(0.1, review.seconds, ...review.lines.map((line) => Math.max(line.end, line.start + line.slow)));

/** @param {number} length seconds */
export function ticks(length) {
    const step = STEPS.find((each) => length / each <= TICKS) ?? 120;
    return Array.from({ length: Math.floor(length / step + 1e-6) + 1 }, (_, index) => index * step);
}

/**
 * @param {HTMLElement} mark
 * @param {number} from seconds
 * @param {number} to seconds
 * @param {number} length seconds
 */
export function placeSpan(mark, from, to, length) {
    mark.style.left = `${(100 * from) / length}%`;
    mark.style.width = `${(100 * Math.max(0, to - from)) / length}%`;
}
