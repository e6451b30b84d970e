"""Fit to Budget's curve on its node."""

from __future__ import annotations

DEMO = "diffusion_models/roundsmith-demo-flux-digits.safetensors"


def test_a_point_of_the_curve_becomes_the_target(canvas, demo):
    budget, plan = (
        canvas.add("RoundsmithFitToBudget"),
        canvas.add("RoundsmithPlanQuantization", 700, 100),
    )
    for node in (budget, plan):
        canvas.set(node, "source", DEMO)
    canvas.set(budget, "target.size", 0.007)
    canvas.page.evaluate(
        """([from, to]) => {
            const graph = window.app.rootGraph, target = graph.getNodeById(to);
            graph.getNodeById(from).connect(0, target, target.findInputSlot("recipe"));
        }""",
        [budget, plan],
    )
    canvas.center(budget)
    canvas.run()
    points = canvas.page.locator(".roundsmith-curve .best")
    points.first.wait_for(timeout=10000)
    assert 2 < points.count() <= 48
    canvas.shot("curve")
    box = points.nth(points.count() // 2).bounding_box()
    canvas.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    said = canvas.page.locator(".roundsmith-curve .said").inner_text()
    assert canvas.value(budget, "target") == "size, GB"
    size = canvas.value(budget, "target.size")
    assert f"Target set to {size * 1e3:.1f} MB" in said
    canvas.run()
    found = canvas.page.evaluate(
        "id => window.app.rootGraph.getNodeById(id).properties.roundsmith_curve.size", budget
    )
    assert 0.97 * size * 1e9 < found <= size * 1e9, "the choice is that point"
    canvas.page.wait_for_timeout(1500)
    canvas.reload()
    points.first.wait_for(timeout=15000)
    canvas.page.locator(".roundsmith-curve svg").focus()
    for key in ("Home", "ArrowRight", "Enter"):
        canvas.page.keyboard.press(key)
    assert canvas.value(budget, "target.size") < size, "the keyboard does it too"
    canvas.shot("curve-again")
