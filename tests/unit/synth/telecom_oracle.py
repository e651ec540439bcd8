"""An independent diagnosis of telecom tasks by tau2's policy and manual: what made tasks are tested with.

It uses nothing of `tau2rl.synth`. It looks at the phone and the rows that a task begins with, and at the words of its user, and
works out what has to be done and by whom, or that it has to go to a human. What it cannot read it does not pass: it raises.
"""

from __future__ import annotations

import json
import re
from datetime import date
from typing import Any

from tau2rl.env.domain import domain

from tau2.data_model.tasks import Task

Json = dict[str, Any]
TODAY = date(2025, 2, 25)
MONTHS = {"October 2024": "2024-10-01", "November 2024": "2024-11-01", "December 2024": "2024-12-01"}
HUMAN = ("assistant", "transfer_to_human_agents")


def words(task: Json) -> str:
    """All that the user says."""
    told = task["user_scenario"]["instructions"]
    return f"{told['reason_for_call']}\n{told['known_info']}"


def begin(task: Json) -> Any:
    """tau2's environment as the task begins."""
    environment = domain("telecom").environment()
    initial = Task.model_validate(task).initial_state
    assert initial is not None
    environment.set_state(initial.initialization_data, initial.initialization_actions, [])
    return environment


def taken(task: Json) -> list[str]:
    """The reference actions as text, without order; a summary may say anything."""
    actions = task["evaluation_criteria"]["actions"]
    return sorted(_text(a["requestor"], a["name"], **({} if a["name"] == HUMAN[1] else a["arguments"])) for a in actions)


def diagnose(task: Json) -> list[str]:
    """What has to be done, as text, without order."""
    environment, intent = begin(task), task["id"][1:].partition("_issue]")[0]
    phone, around = environment.user_tools.device, environment.user_tools.surroundings
    customer, line = _owner(task, environment)
    assert (around.name, around.phone_number) == (customer.full_name, line.phone_number)
    ids: Json = {"customer_id": customer.customer_id, "line_id": line.line_id}
    found = [_text("user", "toggle_airplane_mode")] if phone.airplane_mode else []
    if phone.sim_card_missing and intent != "mobile_data":
        found.append(_text("user", "reseat_sim_card"))
    if phone.sim_card_status != "active":
        found.append(_text(*HUMAN))
    if intent == "service":
        found += _service(environment, customer, line, ids)
    else:
        found += [*_data(task, environment, line, ids), *(_speed(phone) if intent == "mobile_data" else _mms(phone))]
    return [_text(*HUMAN)] if _text(*HUMAN) in found else sorted(found)


def _service(environment: Any, customer: Any, line: Any, ids: Json) -> list[str]:
    broken = environment.user_tools.device.active_apn_settings.apn_name == "broken"
    found = [_text("user", "reset_apn_settings")] if broken else []
    if line.status == "Suspended":
        if line.contract_end_date < TODAY:
            return [_text(*HUMAN)]
        bills = [environment.tools._get_bill_by_id(id) for id in customer.bill_ids]
        (overdue,) = [bill for bill in bills if bill.status == "Overdue"]
        found.append(_text("assistant", "send_payment_request", customer_id=customer.customer_id, bill_id=overdue.bill_id))
        found += [_text("user", "make_payment"), _text("assistant", "resume_line", **ids)]
    return [*found, *([_text("user", "reboot_device")] if found else [])]


def _data(task: Json, environment: Any, line: Any, ids: Json) -> list[str]:
    phone, abroad = environment.user_tools.device, environment.user_tools.surroundings.is_abroad
    assert abroad == ("abroad" in words(task)) and abroad != ("in the United States" in words(task))
    found = [] if phone.data_enabled else [_text("user", "toggle_data")]
    if abroad and not phone.roaming_enabled:
        found.append(_text("user", "toggle_roaming"))
    if abroad and not line.roaming_enabled:
        found.append(_text("assistant", "enable_roaming", **ids))
    plan = environment.tools._get_plan_by_id(line.plan_id)
    *wrong, gigabytes = re.findall(r"([\d.]+) GB", words(task))
    assert len(wrong) == len(re.findall(r"^Sorry, .* amount", words(task), re.MULTILINE)) <= 1
    if line.data_used_gb >= plan.data_limit_gb + line.data_refueling_gb:
        full = line.data_refueling_gb + float(gigabytes) > 2
        found.append(_text(*HUMAN) if full else _text("assistant", "refuel_data", **ids, gb_amount=float(gigabytes)))
    return found


def _speed(phone: Any) -> list[str]:
    found = [_text("user", "toggle_data_saver_mode")] if phone.data_saver_mode else []
    if phone.network_mode_preference in ("2g_only", "3g_only"):
        found.append(_text("user", "set_network_mode_preference", mode="4g_5g_preferred"))
    if phone.vpn_connected and phone.vpn_details.server_performance == "poor":
        found.append(_text("user", "disconnect_vpn"))
    return found


def _mms(phone: Any) -> list[str]:
    found: list[str] = []
    if phone.network_mode_preference == "2g_only":
        found.append(_text("user", "set_network_mode_preference", mode="4g_5g_preferred"))
    if phone.wifi_calling_enabled:
        found.append(_text("user", "toggle_wifi_calling"))
    allowed = phone.app_statuses["messaging"].permissions
    missing = [name for name in ("sms", "storage") if not getattr(allowed, name)]
    found += [_text("user", "grant_app_permission", app_name="messaging", permission=name) for name in missing]
    if phone.active_apn_settings.mmsc_url is None:
        found += [_text("user", "reset_apn_settings"), _text("user", "reboot_device")]
    return found


def _owner(task: Json, environment: Any) -> tuple[Any, Any]:
    """Whose words these are, and the line that they are about."""
    said = words(task)
    assert not re.search(r"\b(C\d{4}|L\d{4}|B\d{8})\b", said), "an id that a customer does not know"
    (number,) = re.findall(r"\b555-\d{3}-\d{4}\b", said)
    line = environment.tools._get_line_by_phone(number)
    (customer,) = environment.tools.db.customers
    assert line.line_id in customer.line_ids and customer.full_name in said
    assert re.findall(r"born on ([\d-]+)", said) in ([], [customer.date_of_birth])
    asked = re.findall(r"how much my bill for (\w+ \d{4}) came to", said)
    bills = [environment.tools._get_bill_by_id(id) for id in customer.bill_ids]
    totals = [f"{bill.total_due:.2f}" for month in asked for bill in bills if str(bill.period_start) == MONTHS[month]]
    assert task["evaluation_criteria"]["communicate_info"] == totals
    return customer, line


def _text(requestor: str, name: str, **arguments: Any) -> str:
    return json.dumps([requestor, name, arguments], sort_keys=True)
