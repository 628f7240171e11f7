(() => {
  "use strict";
  const { root, unpack, plotly, draw } = drawing;

  (async () => {
    const figures = JSON.parse(await unpack("run-data"));
    await plotly();
    for (const [id, figure] of Object.entries(figures)) await draw(id, figure);
    root.classList.add("scripted", "drawn");
  })().catch((problem) => console.error(problem));
})();
