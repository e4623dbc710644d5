/* The gallery of a subject: cards that are sorted in the page, without a server. */
(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("gallery-data").textContent);
  const place = document.getElementById("gallery");
  const methods = Object.keys(data.methods);
  const metrics = Object.keys(data.metrics);
  const parts = data.shown.length + 1;
  /* Both stages: by this book's solver, or where that did not run, as published. */
  const full = ["stage2", "algorithm_1"].find((name) => data.shown.includes(name));
  const firstShown = ["stage1", full].filter((name) => data.shown.includes(name));
  const state = {
    metric: metrics[0],
    method: firstShown[firstShown.length - 1] || data.shown[0],
    order: "high",
    shown: new Set(firstShown.length ? firstShown : data.shown.slice(0, 2)),
  };
  const GAIN = full + "-stage1";

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function number(picture, method, metric) {
    const row = picture.values[method];
    return row ? row[metrics.indexOf(metric)] : null;
  }

  /* What an image is sorted by: a number, or null if there is none. */
  function key(picture) {
    if (state.metric === "id") return picture.id;
    if (state.method !== GAIN) return number(picture, state.method, state.metric);
    const [after, before] = [full, "stage1"].map((m) => number(picture, m, state.metric));
    return after === null || before === null ? null : after - before;
  }

  function written(value) {
    if (value === null) return "–";
    const text = value.toFixed(2).replace("-", "−");
    return text === "−0.00" ? "0.00" : text;
  }

  function choice(label, name, options, change) {
    const select = element("select", { id: "gallery-" + name, "data-sort": name });
    for (const [value, text] of options) {
      const option = element("option", { value: value }, text);
      option.selected = state[name] === value;
      select.append(option);
    }
    select.addEventListener("change", () => {
      state[name] = select.value;
      change();
    });
    return element("span", { class: "gallery-choice" },
      element("label", { for: select.id }, label), select);
  }

  function picture(strip, part, words) {
    const image = element("img", { class: "strip", src: strip, alt: words, loading: "lazy" });
    image.style.objectPosition = (100 * part) / (parts - 1) + "% 0";
    return image;
  }

  function table(item) {
    const head = element("tr", {}, element("th", { scope: "col" }, "method"));
    metrics.forEach((name) => head.append(element("th", { scope: "col" }, data.metrics[name])));
    const rows = methods.map((method) => {
      const row = element("tr", {}, element("th", { scope: "row" }, data.methods[method]));
      metrics.forEach((m) => row.append(element("td", {}, written(number(item, method, m)))));
      return row;
    });
    const made = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
    // Wider than a phone: it scrolls, also with the keyboard.
    const name = "Numbers of image " + item.id;
    return element("div", { class: "gallery-table", tabindex: "0", role: "group", "aria-label": name },
      made);
  }

  function stripOf(item, row) {
    return item.strip || data.strips + String(row).padStart(4, "0") + ".jpg";
  }

  /* One test image, large: two of its pictures with a border that moves, and all its numbers. */
  function side(name, part) {
    const select = element("select", { "data-side": name, "aria-label": "The " + name + " image" });
    ["seen", ...data.shown].forEach((method, place) => {
      const position = (100 * place) / (parts - 1) + "% 0";
      const label = place ? data.methods[method] : "seen";
      const option = element("option", { value: position }, label);
      option.selected = place === part;
      select.append(option);
    });
    return element("label", {}, name + ": ", select);
  }

  function large(item, row) {
    const strip = stripOf(item, row);
    const part = 1 + Math.max(0, data.shown.indexOf(full));
    const over = picture(strip, 0, "Left image: seen");
    over.classList.add("compare-over");
    const slider = element("input", { type: "range", min: "0", max: "100", value: "50",
      "aria-label": "How much of the left image is shown" });
    const under = picture(strip, part, "Right image: " + data.methods[data.shown[part - 1]]);
    return [
      element("figure", { class: "compare" },
        element("div", { class: "compare-images" }, under, over, slider),
        element("div", { class: "compare-sides" }, side("left", 0), side("right", part))),
      table(item),
    ];
  }

  const dialog = element("dialog", { class: "gallery-dialog", "aria-labelledby": "gallery-large" });
  dialog.addEventListener("close", () => {
    history.replaceState(null, "", location.pathname + location.search);
  });

  /* An image has an address of its own, gallery.html#picture-12, which opens it. */
  function openAddressed() {
    const wanted = decodeURIComponent(location.hash);
    const row = data.pictures.findIndex((item) => "#picture-" + item.id === wanted);
    if (row < 0) return;
    const step = (by, label) => {
      const other = data.pictures[(row + by + data.pictures.length) % data.pictures.length];
      return element("a", { href: "#picture-" + encodeURIComponent(other.id) }, label);
    };
    const close = element("button", { type: "button" }, "Close");
    close.addEventListener("click", () => dialog.close());
    dialog.replaceChildren(
      element("p", { class: "gallery-name", id: "gallery-large" }, "Image " + data.pictures[row].id),
      ...large(data.pictures[row], row),
      element("p", { class: "gallery-steps" }, step(-1, "previous"), step(1, "next"), close));
    if (!dialog.open) dialog.showModal();
  }

  function card(item, row) {
    const strip = stripOf(item, row);
    const pictures = element("div", { class: "gallery-pictures" });
    ["seen", ...data.shown].forEach((method, part) => {
      const label = part ? data.methods[method] : "seen";
      const words = "Image " + item.id + (part ? ", reconstructed: " + label : ", as seen");
      const value = element("span", { class: "gallery-value" });
      const made = element("figure", { "data-method": method }, picture(strip, part, words),
        element("figcaption", {}, label, " ", value));
      pictures.append(made);
    });
    const more = element("details", {}, element("summary", {}, "All numbers of image " + item.id));
    more.addEventListener("toggle", () => {
      if (more.open && more.children.length === 1) more.append(table(item));
    });
    const link = element("a", { href: "#picture-" + encodeURIComponent(item.id) }, "Image " + item.id);
    const title = element("p", { class: "gallery-name" }, link);
    return element("li", { "data-id": item.id, id: "picture-" + item.id }, title, pictures, more);
  }

  const cards = data.pictures.map((item, row) => ({ item, row, node: card(item, row) }));
  const list = element("ol", { class: "gallery-cards" });
  const status = element("p", { role: "status", class: "gallery-status" });

  function refresh() {
    const sign = state.order === "high" ? -1 : 1;
    const keyed = cards.map((one) => [key(one.item), one]);
    keyed.sort(([a, one], [b, two]) => {
      if (a === null || b === null) return (a === null) - (b === null) || one.row - two.row;
      return sign * (a - b) || one.row - two.row;
    });
    keyed.forEach(([value, one]) => {
      if (value === null) one.node.removeAttribute("data-key");
      else one.node.setAttribute("data-key", value);
    });
    list.append(...keyed.map(([, one]) => one.node));
    cards.forEach((one) => show(one));
    say();
  }

  function show(one) {
    const metric = state.metric === "id" ? metrics[0] : state.metric;
    one.node.querySelectorAll("figure").forEach((figure) => {
      const method = figure.dataset.method;
      figure.hidden = method !== "seen" && !state.shown.has(method);
      const value = figure.querySelector(".gallery-value");
      value.textContent = method === "seen" ? "" : written(number(one.item, method, metric));
      figure.classList.toggle("sorted", state.metric !== "id" &&
        (method === state.method || (state.method === GAIN && method === full)));
    });
  }

  function say() {
    const what = state.metric === "id" ? "number of the image"
      : data.metrics[state.metric] + " of " +
        (state.method === GAIN ? "stage 2 minus stage 1" : data.methods[state.method]);
    const order = state.order === "high" ? "highest" : "lowest";
    status.textContent = cards.length + " images by " + what + ", " + order + " first.";
  }

  const ofMethods = data.shown.map((name) => [name, data.methods[name]]);
  if (firstShown.length === 2) ofMethods.push([GAIN, "stage 2 minus stage 1"]);
  const ofMetrics = [...metrics.map((name) => [name, data.metrics[name]]), ["id", "image's number"]];
  const boxes = element("fieldset", {}, element("legend", {}, "Show"));
  data.shown.forEach((name) => {
    const box = element("input", { type: "checkbox", id: "gallery-show-" + name });
    box.checked = state.shown.has(name);
    box.addEventListener("change", () => {
      state.shown[box.checked ? "add" : "delete"](name);
      cards.forEach((one) => show(one));
    });
    boxes.append(element("span", { class: "gallery-choice" }, box,
      element("label", { for: box.id }, data.methods[name])));
  });
  place.append(element("form", { class: "gallery-form", "aria-label": "Sort the gallery" },
    choice("Sort by", "metric", ofMetrics, refresh),
    choice("of", "method", ofMethods, refresh),
    choice("with the", "order", [["high", "highest first"], ["low", "lowest first"]], refresh),
    boxes), status, list, dialog);
  window.addEventListener("hashchange", openAddressed);
  place.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  refresh();
  openAddressed();
})();
