"""Kafka requests that aiokafka does not know: topic ids (KIP-516), and leaving a group by a member's name (KIP-345)."""

from __future__ import annotations

from io import BytesIO

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    String,
    TaggedFields,
)


class _Uuid(AbstractType):  # type: ignore[misc]  # aiokafka has no types
    """Sixteen bytes."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _TopicsResponseV11(Response):  # type: ignore[misc]  # aiokafka has no types
    """Metadata, version 11: the first to tell topic ids that every Kafka since 2.8 answers."""

    API_KEY = 3
    API_VERSION = 11
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString()),
                ("port", Int32),
                ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString()),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("number", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("in_sync", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _TopicsRequestV11(RequestStruct):  # type: ignore[misc]  # aiokafka has no types
    """Metadata, version 11."""

    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 11
    RESPONSE_TYPE = _TopicsResponseV11
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString()), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class TopicsRequest(Request[_TopicsRequestV11]):  # type: ignore[misc]  # aiokafka has no types
    """Asks what a topic is, without making it."""

    API_KEY = 3

    def __init__(self, name: str) -> None:
        self._name = name

    def build(self, request_struct_class: type[_TopicsRequestV11]) -> _TopicsRequestV11:
        """The request as it goes over the wire."""
        return request_struct_class([(bytes(16), self._name, {})], False, False, {})


class _LeaveResponseV3(Response):  # type: ignore[misc]  # aiokafka has no types
    """LeaveGroup, version 3."""

    API_KEY = 13
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("members", Array(("member_id", String()), ("group_instance_id", String()), ("error_code", Int16))),
    )


class _LeaveRequestV3(RequestStruct):  # type: ignore[misc]  # aiokafka has no types
    """LeaveGroup, version 3: the first that names members by their ``group_instance_id`` (KIP-345)."""

    API_KEY = 13
    API_VERSION = 3
    RESPONSE_TYPE = _LeaveResponseV3
    SCHEMA = Schema(
        ("group", String()),
        ("members", Array(("member_id", String()), ("group_instance_id", String()))),
    )


class LeaveRequest(Request[_LeaveRequestV3]):  # type: ignore[misc]  # aiokafka has no types
    """Takes one member out of a group."""

    API_KEY = 13

    def __init__(self, group: str, member: str) -> None:
        self._group = group
        self._member = member

    def build(self, request_struct_class: type[_LeaveRequestV3]) -> _LeaveRequestV3:
        """The request as it goes over the wire."""
        return request_struct_class(self._group, [("", self._member)])
