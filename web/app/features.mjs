/** What the pack adds to the browser, one feature a file. */

import { budget } from "./budget.mjs";
import { picking } from "./picking.mjs";
import { results } from "./results.mjs";

export const features = [results, picking, budget];
