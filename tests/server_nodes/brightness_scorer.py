"""A node for the tests' server that brings a scorer of its own, as another pack would: nothing but `score`."""


class Brightness:
    def score(self, images, prompt):
        return images.mean(dim=(1, 2, 3)).tolist()


class BrightnessScorer:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "make", ("PICTURE_SCORER",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return (Brightness(),)


NODE_CLASS_MAPPINGS = {"BrightnessScorer": BrightnessScorer}
