"""How to read the figures of the knowledge study."""

from __future__ import annotations

GUIDE = (
    (
        "The experiment",
        "A true and a false statement differ in one word. The activation of the true run (clean, in the "
        "source stage) at one layer and one token replaces that of the false run (corrupt, in the target "
        "stage), and the run continues. Where this turns the answer towards TRUE, the activation carries the "
        "fact. Source = target is storage; another source is transfer: forward from an earlier stage into a "
        "later one, backward the other way.",
    ),
    (
        "Judgement table",
        "Read it first. Where a stage does not judge both halves of a pair right (clean > 0 > corrupt), its "
        "maps say little about knowledge.",
    ),
    (
        "Storage and transfer tables",
        "Pearson r near 1 and small maxima mean that the same layers and tokens matter to the same degree. K "
        "is the maximum over subject and object tokens only. Normalised values hide an overall gain or "
        "loss, which raw values (nats) show. Intervals are over pairs. Read those of max and K as “no larger "
        "than”, those of r as “no less than”.",
    ),
    (
        "Heat maps",
        "Rows are layers, the first on top; columns are the tokens of the statement, subject [s] and object "
        "[o] in colour. Rows of panels are sources, columns of panels targets, the diagonal is storage. "
        "Normalised panels show where patching works best, each on its own range; panels in nats share one "
        "scale, red where the patched run answers TRUE.",
    ),
    (
        "Difference maps",
        "On the diagonal a stage minus base; elsewhere transfer minus the target's own activation. Neutral "
        "means no difference, blue that patching does less than the map subtracted, red that it does more.",
    ),
    (
        "Attention heads",
        "Drawn if single heads were patched: the change of the answer by one head at one token, in nats. It is "
        "small compared with whole sites, because a head is one of many that write into the stream.",
    ),
    (
        "Recovery",
        "0: patching changed nothing; 1: the patched run answers like the clean run. If a dashed line (transfer) "
        "lies below the solid one (own) of the same panel, the target makes less use of the other stage's "
        "activation than of its own.",
    ),
)
"""How to read each kind of figure: heading and text."""

ESTIMATE_GUIDE = (
    (
        "Attribution patching",
        "Where a title says so, no activation was replaced: the change of the answer is estimated from its gradient "
        "at the unpatched corrupt run (first order), for all layers and tokens from one backward pass. The estimate "
        "is poor for large changes through norms and saturated attention, above all in early layers. The attribution "
        "table and the scatter figures compare it with exact patching on a sample of pairs: look at them before you "
        "trust a map, and confirm what you build on with exact patching.",
    ),
)
"""Added to the guide if a set has estimates."""
