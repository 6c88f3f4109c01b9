-- Run once, when the volume is empty. The database prefect is made by the image itself.
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth; -- its users
