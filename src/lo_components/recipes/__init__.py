"""Published compositions, each with its source."""

from ._optimizers import lolv2 as lolv2
from ._optimizers import mulo as mulo
from ._optimizers import small_fc_lopt as small_fc_lopt
