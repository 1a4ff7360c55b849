"""Scorers of colours, which stand in for a network."""


class Colours:
    """A scorer of the mean colour of pictures, which finds no face in dark ones."""

    label = "colours"
    names = ("red", "blue")
    calls = 0

    def __init__(self, context):
        pass

    def score(self, portrait):
        type(self).calls += 1
        red, _, blue = portrait.rgb.reshape(-1, 3).mean(0)
        return {"red": float(red), "blue": float(blue)} if red > 20 else None


class Other(Colours):
    names = ("red",)


class Green(Colours):
    names = ("green",)

    def score(self, portrait):
        return {"green": float(portrait.rgb[..., 1].mean())}
