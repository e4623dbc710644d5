/* Two images, one over the other, and a border between them that moves: with the mouse, a finger or
   the arrow keys, as any slider does. */
document.addEventListener("input", (event) => {
  const box = event.target.closest(".compare");
  if (!box) return;
  if (event.target.matches("select")) {
    const [right, left] = box.querySelectorAll(".compare-images img");
    const image = event.target.dataset.side === "right" ? right : left;
    const chosen = event.target.selectedOptions[0];
    image.style.objectPosition = chosen.value;
    image.alt = (image === right ? "Right" : "Left") + " image: " + chosen.textContent;
  } else {
    box.style.setProperty("--at", event.target.value + "%");
  }
});
