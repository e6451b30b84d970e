/** What the pack adds to the browser, one feature a file. */

import { results } from "./results.mjs";

export const features = [results];
