/** What the pack adds to the browser, one feature a file. */

import { badge } from "./badge.mjs";
import { budget } from "./budget.mjs";
import { defaults } from "./defaults.mjs";
import { drop } from "./drop.mjs";
import { longRuns } from "./long_runs.mjs";
import { menus } from "./menus.mjs";
import { picking } from "./picking.mjs";
import { results } from "./results.mjs";

export const features = [defaults, badge, results, picking, budget, drop, menus, longRuns];
