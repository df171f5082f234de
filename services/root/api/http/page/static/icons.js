// Icons as lines on a grid of 24.

import { svg } from "./vendor/lit-html.js";

const icon = (path) => svg`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${path} /></svg>`;

export const icons = {
  menu: icon("M4 6h16M4 12h16M4 18h16"),
  add: icon("M12 5v14M5 12h14"),
  send: icon("M12 19V5M6 11l6-6 6 6"),
  stop: icon("M7 7h10v10H7z"),
  edit: icon("M4 20h4L19 9l-4-4L4 16zM13 7l4 4"),
  copy: icon("M9 9h11v11H9zM5 15H4V4h11v1"),
  again: icon("M20 12a8 8 0 1 1-3-6.2M20 3v5h-5"),
  remove: icon("M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13"),
  clip: icon("M20 11l-8.5 8.5a5 5 0 0 1-7-7L13 4a3.3 3.3 0 0 1 4.7 4.7L9.300 17a1.700 1.700 0 0 1-2.400-2.400L14.500 7"),
  gear: icon("M4 7h10M18 7h2M4 17h2M10 17h10M14 4.500v5M6 14.500v5"),
  sun: icon("M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v3M12 19v3M2 12h3M19 12h3M5 5l2 2M17 17l2 2M5 19l2-2M17 7l2-2"),
  moon: icon("M20 14.500A8.500 8.500 0 0 1 9.500 4 8.500 8.500 0 1 0 20 14.500z"),
  help: icon("M9 9a3 3 0 1 1 4.500 2.600c-1 .6-1.500 1.200-1.500 2.400M12 17.500v.5"),
  save: icon("M12 4v11M7 10l5 5 5-5M5 20h14"),
  share: icon("M12 15V4M7 9l5-5 5 5M5 20h14"),
  close: icon("M6 6l12 12M18 6L6 18"),
};
