"""Objects of S3 and GCS, addressed by the local paths of their copies.

The copy of `s3://BUCKET/KEY` on every node is the file `CACHE/s3:/BUCKET/KEY`, its mirror. So a path says by itself
whether it stands for an object, and for which; a worker on another node needs nothing but the path. The object is the
truth: a mirror is only ever a copy of it, or something that was not stored yet.
"""

from vidflow.objects.cache import CACHE_LIMIT, fetch, make_folder, store
from vidflow.objects.mirror import (
    is_mirror,
    is_object_url,
    mirror_path,
    object_url,
    show_urls,
    split_mirror,
    to_path,
)
from vidflow.objects.remote import (
    ObjectState,
    delete_folder,
    delete_object,
    download,
    hash_object,
    list_objects,
    move_object,
    object_state,
    object_states,
    read_object,
    write_object,
)

__all__ = [
    "CACHE_LIMIT",
    "ObjectState",
    "delete_folder",
    "delete_object",
    "download",
    "fetch",
    "hash_object",
    "is_mirror",
    "is_object_url",
    "list_objects",
    "make_folder",
    "mirror_path",
    "move_object",
    "object_state",
    "object_states",
    "object_url",
    "read_object",
    "show_urls",
    "split_mirror",
    "store",
    "to_path",
    "write_object",
]
