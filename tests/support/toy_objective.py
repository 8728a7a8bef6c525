"""An objective in one file: what is predicted of one view is what the teacher sees in the other."""

from torch.nn.functional import cosine_similarity

from sercli.methods import Method, mlp, share_of
from sercli.recipe import Count, MethodConfig, Probability, cosine


class ToyConfig(MethodConfig):
    name: str = "toy"
    width: Count = 64
    momentum: Probability = 0.99


class Toy(Method):
    Config = ToyConfig
    uses_teacher = True
    evaluates_teacher = False
    needs_images = (2, "batch norm")

    def __init__(self, config, dim):
        super().__init__()
        self.config = config
        self.projector = mlp([dim, config.width, config.width], last_norm=True)
        self.predictor = mlp([config.width, config.width, config.width], last_norm=False)

    def shared_head(self):
        return self.projector

    def student(self, cls):
        return self.predictor(self.projector(cls))

    def loss(self, given):
        pairs = zip(given.students, reversed(given.teachers), strict=True)
        agreement = sum(cosine_similarity(s, t).mean() for s, t in pairs)
        return -agreement * share_of(given.counts)

    def momentum_at(self, progress):
        return cosine(self.config.momentum, 1.0, progress)
