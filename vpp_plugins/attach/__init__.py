"""Put VPP on a model and take it off again; everything that an attached host is and does."""

from vpp_plugins.attach import vocabulary
from vpp_plugins.attach.attach import (
    attach_control,
    attach_vpp,
    detach_vpp,
    host_state,
    is_attached,
    load_vpp,
    save_vpp,
    unwrap,
    vpp_disabled,
    vpp_of,
)
from vpp_plugins.attach.card import CARD, put_scores, write_card
from vpp_plugins.attach.checkpoint import CONFIG_FILE, WEIGHTS_FILE, read_into, resolve, write_vpp
from vpp_plugins.attach.deduplicate import encoded_once, prepared_once
from vpp_plugins.attach.host import active_vpp, every_vpp, onloaded
from vpp_plugins.attach.peft_compat import check_found, refuse_dropped_prompts
from vpp_plugins.attach.stopwatch import Stopwatch
from vpp_plugins.attach.vocabulary import NeverTokens, rows_of
from vpp_plugins.attach.windows import PER_SIDE, to_windows

__all__ = [
    "CARD",
    "CONFIG_FILE",
    "PER_SIDE",
    "WEIGHTS_FILE",
    "NeverTokens",
    "Stopwatch",
    "active_vpp",
    "attach_control",
    "attach_vpp",
    "check_found",
    "detach_vpp",
    "encoded_once",
    "every_vpp",
    "host_state",
    "is_attached",
    "load_vpp",
    "onloaded",
    "prepared_once",
    "put_scores",
    "read_into",
    "refuse_dropped_prompts",
    "resolve",
    "rows_of",
    "save_vpp",
    "to_windows",
    "unwrap",
    "vocabulary",
    "vpp_disabled",
    "vpp_of",
    "write_card",
    "write_vpp",
]
