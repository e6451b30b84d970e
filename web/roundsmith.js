/** The browser's part of the pack. ComfyUI loads this file; all others are imported from here. */

import { frontend } from "./app/frontend.mjs";
import { features } from "./app/features.mjs";

frontend.register(features);
