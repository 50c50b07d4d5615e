"""What a drawn figure shows, read back from its artists."""

from matplotlib.backends.backend_agg import FigureCanvasAgg

from posttrace.figures import theme


def panels(drawing):
    """Title -> axes, of the panels of a heat map grid."""
    return {ax.get_title(): ax for ax in drawing.figure.axes if ax.get_label() != "<colorbar>"}


def overlaps(figure):
    """Pairs of visible texts of a figure that overlap by more than a pixel, and texts that are cut."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    with theme.look():
        figure.draw_without_rendering()
    texts = [figure._suptitle] + [ax.title for ax in figure.axes]
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [tick.label1 for tick in ticks] + [tick.label2 for tick in ticks]
            texts.append(axis.label)
    texts = [t for t in texts if t.get_visible() and t.get_text()]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts]
    cut = [
        text for text, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > figure.bbox.x1 + 1 or box.y1 > figure.bbox.y1 + 1
    ]  # fmt: skip
    clash = [
        (a, b)
        for i, (a, one) in enumerate(boxes)
        for b, two in boxes[i + 1 :]
        if min(one.x1, two.x1) - max(one.x0, two.x0) > 1 and min(one.y1, two.y1) - max(one.y0, two.y0) > 1
    ]
    return clash + cut
