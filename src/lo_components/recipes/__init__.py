"""Published learned optimizers and aggregators, each with its source, and close variants."""

from ._aggregators import lagg as lagg
from ._aggregators import lagg_a as lagg_a
from ._aggregators import lopt as lopt
from ._aggregators import lopt_a as lopt_a
from ._aggregators import pooled_lagg_a as pooled_lagg_a
from ._celo import celo as celo
from ._celo import celo2 as celo2
from ._celo import celo2_base as celo2_base
from ._celo import celo2_direction as celo2_direction
from ._celo import celo_adam as celo_adam
from ._celo import celo_update as celo_update
from ._celo import sinv6 as sinv6
from ._l2l import l2l_lstm as l2l_lstm
from ._muon import residual_muon as residual_muon
from ._muon import rms_muon as rms_muon
from ._nn_adam import nn_adam as nn_adam
from ._optimizers import lolv2 as lolv2
from ._optimizers import mulo as mulo
from ._optimizers import small_fc_lopt as small_fc_lopt
from ._options import HeadOptions as HeadOptions
from ._options import Options as Options
from ._rnn_mlp import rnn_mlp as rnn_mlp
from ._star import star as star
from ._velo import velo as velo
