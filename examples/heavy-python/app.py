"""What many real functions look like: an init that imports a lot, and a handler that does a little with it."""

import asyncio
import concurrent.futures
import csv
import dataclasses
import datetime
import decimal
import email.message
import fractions
import hashlib
import html.parser
import http.client
import http.server
import io
import ipaddress
import json
import logging.config
import sqlite3
import ssl
import statistics
import unittest.mock
import urllib.request
import uuid
import xml.dom.minidom
import xml.etree.ElementTree
import zoneinfo

logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})

# State that takes time to build and then is only read.
TLS = ssl.create_default_context()
DATABASE = sqlite3.connect(":memory:", check_same_thread=False)
DATABASE.execute("CREATE TABLE squares (number INTEGER PRIMARY KEY, square INTEGER)")
DATABASE.executemany("INSERT INTO squares VALUES (?, ?)", ((number, number * number) for number in range(10001)))
DATABASE.commit()


@dataclasses.dataclass(frozen=True)
class Square:
    number: int

    async def area(self):
        await asyncio.sleep(0)
        query = "SELECT square FROM squares WHERE number = ?"
        return DATABASE.execute(query, (self.number,)).fetchone()[0]


async def areas(values):
    return await asyncio.gather(*(Square(value).area() for value in values))


def handler(event, context):
    values = event.get("values", [1, 2, 3])
    squares = asyncio.run(areas(values))
    document = xml.etree.ElementTree.Element("squares", count=str(len(squares)))
    for square in squares:
        xml.etree.ElementTree.SubElement(document, "square").text = str(decimal.Decimal(square))
    return {
        "squares": squares,
        "mean": statistics.mean(values),
        "sha256": hashlib.sha256(xml.etree.ElementTree.tostring(document)).hexdigest(),
    }
