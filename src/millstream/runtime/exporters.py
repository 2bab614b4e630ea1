"""Who is told of settled streams: the settings -> the exporters."""

from millstream.errors import ConfigurationError
from millstream.exporters import Customers, Form, Value
from millstream.exporters.cloudevents import CloudEvents
from millstream.exporters.delivery import Delivery
from millstream.exporters.exporter import Exporter
from millstream.exporters.stripe import URL, MeterEvents
from millstream.exporters.webhook import Webhook
from millstream.ledger.exports import Exports
from millstream.settings import ExporterSettings, Settings

_STRIPE_PER_SECOND = 500.0  # half of what Stripe takes of an account
_EVENT_TYPE = "millstream.stream"


def exporters(settings: Settings, exports: Exports) -> list[Exporter]:
    """Raises ``ConfigurationError``."""
    return [_exporter(name, one, settings, exports) for name, one in settings.exporters.items()]


def _exporter(name: str, given: ExporterSettings, settings: Settings, exports: Exports) -> Exporter:
    try:
        form, url = _form(given)
        proxy = given.proxy or settings.proxy
        from_environment = proxy == "environment"
        delivery = Delivery(
            url,
            {**form.headers, **given.headers},
            proxy=None if from_environment else proxy,
            from_environment=from_environment,
            ca_file=given.ca_file or settings.ca_file,
        )
    except ValueError as error:
        raise ConfigurationError(f"exporter '{name}': {error}") from error
    per_second = given.per_second or (_STRIPE_PER_SECOND if given.type == "stripe" else None)
    return Exporter(name, form, delivery, exports, per_second=per_second)


def _form(given: ExporterSettings) -> tuple[Form, str]:
    secret = None if given.secret is None else given.secret.get_secret_value()
    customers = Customers(given.customer, given.customers)
    match given.type:
        case "stripe":
            assert secret is not None
            assert given.event_name is not None
            return MeterEvents(secret, given.event_name, Value(given.value), customers), given.url or URL
        case "cloudevents":
            assert given.url is not None
            event_type = given.event_name or _EVENT_TYPE
            return CloudEvents(secret, given.source, event_type, customers, given.batch), given.url
        case "webhook":
            assert secret is not None
            assert given.url is not None
            return Webhook(secret.split(",")), given.url
