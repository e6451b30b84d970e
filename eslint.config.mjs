/** What `dev.py lint` holds the browser's part to. */

import js from "@eslint/js";

const browser = [
  ..."window document navigator location console performance fetch URL URLSearchParams Blob File".split(" "),
  ..."FormData FileReader Image CustomEvent Event KeyboardEvent MouseEvent DataTransfer".split(" "),
  ..."HTMLElement Node ResizeObserver MutationObserver IntersectionObserver AbortController".split(" "),
  ..."setTimeout clearTimeout setInterval clearInterval requestAnimationFrame".split(" "),
  ..."cancelAnimationFrame queueMicrotask structuredClone localStorage sessionStorage".split(" "),
  ..."getComputedStyle DOMRect DOMPoint CSS Path2D confirm alert".split(" "),
];

export default [
  js.configs.recommended,
  {
    files: ["web/**/*.{js,mjs}"],
    languageOptions: {
      ecmaVersion: 2023,
      sourceType: "module",
      globals: Object.fromEntries(browser.map((name) => [name, "readonly"])),
    },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      eqeqeq: "error",
      "no-var": "error",
      "prefer-const": "error",
      "no-implied-eval": "error",
      "no-eval": "error",
      "no-restricted-properties": [
        "error",
        ...["innerHTML", "outerHTML", "insertAdjacentHTML"].map((property) => ({
          property,
          message: "names from files are shown as text: use h() of dom.mjs",
        })),
      ],
    },
  },
];
