"""Where the images of a plan come from: a row of `table` for each kind of source, one listing, and one reader."""

from flawscope.runtime.scale.inputs.items import Found, Item, decode_item, encode_item
from flawscope.runtime.scale.inputs.listing import list_items
from flawscope.runtime.scale.inputs.reader import Reader
from flawscope.runtime.scale.inputs.table import SOURCES

__all__ = ["SOURCES", "Found", "Item", "Reader", "decode_item", "encode_item", "list_items"]
